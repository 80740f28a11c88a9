"""Chooses settings and seeds of which no run is missing."""

import numpy as np
from numpy.typing import NDArray


def rectangle(exists: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns settings and seeds, ascending int64, that have all their runs.

    While a run is missing, the setting or the seed with the largest missing share goes; the setting if both are equal,
    but two settings stay. Settings with one seed, which can't show a difference, go first if two have more.

    Args:
      exists: bool [settings, seeds], whether a run is there.
    """
    settings, seeds = np.arange(exists.shape[0]), np.arange(exists.shape[1])
    if (several := exists.sum(axis=1) > 1).sum() > 1:
        settings = settings[several]
    while not exists[np.ix_(settings, seeds)].all():
        missing = ~exists[np.ix_(settings, seeds)]
        of_settings, of_seeds = missing.mean(axis=1), missing.mean(axis=0)
        if len(settings) > 2 and of_settings.max() >= of_seeds.max():
            settings = np.delete(settings, of_settings.argmax())
        else:
            seeds = np.delete(seeds, of_seeds.argmax())
    return settings, seeds
