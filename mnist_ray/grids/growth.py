"""How a grid grows by seeds, and how long it may take."""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mnist_ray.config.settings import DATA_SETTINGS
from mnist_ray.errors import ConfigError
from mnist_ray.grids.grid import MAX_SEEDS, GridRun

LOOKS = (3, 5, 8, 12)
# One seed says nothing about others.
LEAST_SEEDS = 2
# For the end of Ray and the last look.
_END_S = 6.0
_BUDGET = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


@dataclass(frozen=True)
class Growth:
    """When the settings of a growing grid are compared, and what ends its growth.

    Attributes:
      looks: numbers of seeds after which the settings are compared, ascending, from 2.
      margin: of accuracy, a fraction; smaller differences don't matter.
      settles: whether settings get no more seeds once they are settled.
      deadline: when training has to end, by time.monotonic; infinity without a budget.
    """

    looks: tuple[int, ...]
    margin: float
    settles: bool
    deadline: float = math.inf

    def __post_init__(self) -> None:
        assert self.looks[0] >= LEAST_SEEDS

    @property
    def has_budget(self) -> bool:
        """Whether the time is limited."""
        return math.isfinite(self.deadline)


def read_looks(text: str) -> tuple[int, ...]:
    """Reads numbers of seeds such as 3,5,8,12.

    Raises:
      ConfigError: they are not ascending whole numbers from 2 to MAX_SEEDS.
    """
    try:
        looks = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--looks {text!r}: give numbers of seeds, such as 3,5,8,12") from None
    if looks[0] < LEAST_SEEDS:
        raise ConfigError(f"--looks {text!r}: a look needs {LEAST_SEEDS} seeds or more; one says nothing about others")
    if any(one >= other for one, other in pairwise(looks)):
        raise ConfigError(f"--looks {text!r}: each look needs more seeds than the one before")
    if looks[-1] > MAX_SEEDS:
        raise ConfigError(f"--looks {text!r}: a look takes at most {MAX_SEEDS} seeds")
    return looks


def read_budget(text: str) -> float:
    """Reads a time such as 20m, 1h30m or 90s and returns seconds.

    Raises:
      ConfigError: it is no such time, or 0.
    """
    parts = _BUDGET.fullmatch(text)
    if not text or parts is None:
        raise ConfigError(f"--budget {text!r}: give a time with its units, such as 20m, 1h30m or 90s")
    seconds = sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True))
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--budget {text!r}: give a finite time above 0, such as 20m")
    return seconds


def deadline_of(budget: str | None) -> float:
    """Returns when training has to end; the time of the imports counts, and that of Ray's end and the verdict.

    Args:
      budget: from now, such as 20m, see read_budget; None for no limit.
    """
    if budget is None:
        return math.inf
    budget_s = read_budget(budget)
    return time.monotonic() + budget_s - min(_END_S, budget_s / 5)


def looks_for(looks: Sequence[int] | None, seeds: Sequence[int]) -> tuple[int, ...]:
    """Returns the looks at a grid with these seeds: those given, or the usual ones with one at all seeds.

    Raises:
      ConfigError: fewer seeds than the looks need.
    """
    needed = LEAST_SEEDS if looks is None else looks[-1]
    if len(seeds) < needed:
        what = "to compare settings" if looks is None else f"--looks {','.join(map(str, looks))}"
        raise ConfigError(f"{what}: needs {needed} seeds, and the grid has {len(seeds)}; give --seeds {needed} or more")
    return (*(count for count in LOOKS if count < len(seeds)), len(seeds)) if looks is None else tuple(looks)


def check_comparable(runs: Sequence[GridRun]) -> None:
    """Checks that all runs have the same validation examples.

    Raises:
      ConfigError: a setting of the data varies.
    """
    for name in DATA_SETTINGS:
        if len({getattr(run.config, name) for run in runs}) > 1:
            raise ConfigError(
                f"{name}: varies in the grid, so its runs have different validation examples, by which --until-settled "
                "and --budget compare them; give it one value, or leave the two options out"
            )


@dataclass(frozen=True)
class GrowthOptions:
    """How a grid is asked to grow, before its seeds are known.

    Attributes:
      until_settled: whether settings get no more seeds once they are settled.
      looks: None if not given.
      margin: of accuracy, in points.
      deadline: see Growth.
    """

    until_settled: bool
    looks: tuple[int, ...] | None
    margin: float
    deadline: float

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
          ConfigError: there are looks, but no option that takes them.
        """
        if self.looks is not None and not self.until_settled:
            raise ConfigError("--looks goes with --until-settled")

    @property
    def _grows(self) -> bool:
        return self.until_settled or math.isfinite(self.deadline)

    @property
    def default_seeds(self) -> tuple[int, ...]:
        """The seeds of a grid for which none are given."""
        if not self._grows:
            return (0,)
        return tuple(range((self.looks or LOOKS)[-1]))

    def growth(
        self, seeds: Sequence[int], *, scheduler: str, search: str | None, workers_per_run: int | None
    ) -> Growth | None:
        """Returns how a grid with these seeds grows; None if all seeds are trained at once.

        Raises:
          ConfigError: too few seeds, or the grid can't grow seed by seed.
        """
        if not self._grows:
            return None
        option = "--until-settled" if self.until_settled else "--budget"
        if scheduler == "asha":
            raise ConfigError(
                f"{option}: compares runs that were trained to their ends, and --scheduler asha stops runs early; "
                "leave one of the two out"
            )
        if search == "optuna":
            raise ConfigError(
                f"{option}: needs all settings from the start, and --search optuna chooses them one after the other by "
                "results; leave one of the two out, or use --search random"
            )
        if workers_per_run and math.isfinite(self.deadline):
            raise ConfigError(
                "--budget: ends between the epochs of a stack, and --workers-per-run trains runs to their ends; leave "
                "one of the two out"
            )
        looks = looks_for(self.looks, seeds) if self.until_settled else looks_for(None, seeds)[-1:]
        return Growth(looks, self.margin / 100, self.until_settled, self.deadline)
