"""The options of tune for a grid that grows by seeds."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from mnist_ray.cli.help import option
from mnist_ray.cli.options import DEFAULT_MARGIN, MARGIN_TYPE
from mnist_ray.errors import ConfigError
from mnist_ray.grids.growth import LOOKS, Growth, looks_for, read_budget, read_looks

# For the end of Ray and the last look.
_END_S = 6.0


@dataclass(frozen=True)
class GrowthOptions:
    """Values of the options that growth_options adds.

    Attributes:
      looks: None if not given.
      deadline: see Growth.
    """

    until_settled: bool
    looks: tuple[int, ...] | None
    margin: float
    deadline: float

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


def _deadline(budget_s: float) -> float:
    """Returns when training has to end; the time of the imports counts, and that of Ray's end and the verdict."""
    return time.monotonic() + budget_s - min(_END_S, budget_s / 5)


def growth_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options for a grid that grows; the command gets them as one argument, growing."""

    @functools.wraps(command)
    def with_growth(
        *arguments: Any,
        until_settled: bool,
        looks: str | None,
        margin: float | None,
        budget: str | None,
        **named: Any,
    ) -> None:
        if looks is not None and not until_settled:
            raise click.UsageError("--looks goes with --until-settled")
        if margin is not None and not until_settled and budget is None:
            raise click.UsageError("--margin goes with --until-settled or --budget")
        options = GrowthOptions(
            until_settled,
            None if looks is None else read_looks(looks),
            DEFAULT_MARGIN if margin is None else margin,
            math.inf if budget is None else _deadline(read_budget(budget)),
        )
        command(*arguments, growing=options, **named)

    decorated: Callable[..., None] = with_growth
    for add_option in reversed(_OPTIONS):
        decorated = add_option(decorated)
    return decorated


_OPTIONS = (
    option(
        "--until-settled",
        group="Search and early end",
        is_flag=True,
        help="Train the seeds in looks, and compare the settings on the validation examples after each: settings that "
        "can't be the best, or whose pairs are settled, get no more seeds.",
    ),
    option(
        "--looks",
        group="Search and early end",
        metavar="LIST",
        help=f"Seeds after which --until-settled compares.  [default: {','.join(map(str, LOOKS))}, or up to --seeds]",
    ),
    option(
        "--margin",
        group="Search and early end",
        type=MARGIN_TYPE,
        metavar="POINTS",
        help=f"Differences of accuracy up to this many points don't matter.  [default: {DEFAULT_MARGIN}]",
    ),
    option(
        "--budget",
        group="Search and early end",
        metavar="TIME",
        help="End after this time, such as 20m or 1h30m, with as many seeds of all settings as fit; if not even one "
        "more fits, only the most promising settings get it.",
    ),
)
