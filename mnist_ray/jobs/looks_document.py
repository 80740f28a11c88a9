"""The looks at a grid as looks.json keeps them, so that an interrupted command goes on with the same decisions."""

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_ray.analysis.looks import Look


@dataclass(frozen=True)
class Basis:
    """What looks are about: those with another basis don't count.

    Attributes:
      margin: of accuracy, a fraction.
      seeds: all seeds of the grid, in the order in which they are trained.
      settings: names of all settings.
    """

    margin: float
    seeds: list[int]
    settings: list[str]


def document_of(looks: Sequence[Look], basis: Basis) -> dict[str, Any]:
    """Returns the content of looks.json."""
    return {**vars(basis), "looks": [_row(look, basis.settings) for look in looks]}


def _row(look: Look, settings: Sequence[str]) -> dict[str, Any]:
    above = look.is_settled[np.triu_indices(len(settings), 1)]
    return {
        "num_seeds": look.num_seeds,
        "compared": [settings[place] for place in look.compared],
        "can_be_best": [settings[place] for place in np.flatnonzero(look.is_in).tolist()],
        "settled": b64encode(np.packbits(above).tobytes()).decode(),
    }


def looks_in(document: Mapping[str, Any] | None, basis: Basis) -> list[Look]:
    """Returns the looks in looks.json; none if the seeds, the settings or the margin have changed since."""
    if document is None or {name: document[name] for name in vars(basis)} != vars(basis):
        return []
    return [_look(row, basis.settings) for row in document["looks"]]


def _look(row: Mapping[str, Any], settings: Sequence[str]) -> Look:
    count = len(settings)
    above = np.triu_indices(count, 1)
    is_settled = np.eye(count, dtype=bool)
    is_settled[above] = np.unpackbits(np.frombuffer(b64decode(row["settled"]), np.uint8), count=len(above[0]))
    compared = tuple(settings.index(name) for name in row["compared"])
    return Look(row["num_seeds"], compared, np.isin(settings, row["can_be_best"]), is_settled | is_settled.T)
