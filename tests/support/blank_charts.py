"""Reports without the drawing of their charts, which takes most of their time."""

import hashlib
from typing import IO, Any

import numpy as np
import pytest
from matplotlib.figure import Figure

_VALUES = ("get_text", "get_xydata", "get_offsets", "get_array", "get_extents")


@pytest.fixture
def blank_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a drawing each chart holds a hash of what would be drawn: for tests of all else in a report."""

    def save(figure: Figure, file: IO[bytes], *, format: str, **options: Any) -> None:
        digest = hashlib.sha256()
        for artist in figure.findobj():
            for name in _VALUES:
                if hasattr(artist, name):
                    digest.update(str(np.asarray(getattr(artist, name)()).tolist()).encode())
        file.write(f"<svg><!-- {format} {digest.hexdigest()} --></svg>".encode())

    monkeypatch.setattr(Figure, "savefig", save)
