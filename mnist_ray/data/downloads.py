"""Downloads data sets by torchvision, which is imported only then."""

import contextlib
import http.client
import io
import os
import socket
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mnist_ray.errors import DataError
from mnist_ray.text.meanwhile import meanwhile

# urllib waits forever by default, so a mirror that accepts a connection but never answers would hang the command.
DOWNLOAD_TIMEOUT_S = 60.0


@contextlib.contextmanager
def download_folder(dataset: str, data_dir: Path, advice: str) -> Iterator[Path]:
    """Yields a temporary folder in data_dir to download into; inside, no read waits longer than DOWNLOAD_TIMEOUT_S.

    Files that are moved out of it are therefore whole, after a failure or Ctrl-C too.

    Raises:
      DataError: the download failed; the message ends with the advice.
    """
    # torchvision's progress bar is for a terminal.
    show = contextlib.nullcontext() if meanwhile().isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".download-", dir=data_dir) as temporary,
            show,
            _socket_timeout(DOWNLOAD_TIMEOUT_S),
        ):
            yield Path(temporary)
    except (OSError, RuntimeError, ImportError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"dataset={dataset}: not in {data_dir} and the download failed ({reason}); {advice}") from None


def torchvision_set(name: str, folder: Path, **options: Any) -> Any:
    """Returns torchvision's data set of a name, which it downloads into the folder if the options say so."""
    from torchvision import datasets

    return getattr(datasets, name)(str(folder), **options)


def move_files(source: Path, names: Collection[str], target: Path) -> None:
    """Moves the files of these names, at any depth, into another folder of the same file system."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.rglob("*"):
        if path.name in names:
            os.replace(path, target / path.name)


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
