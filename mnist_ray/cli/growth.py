"""The options of tune for a grid that grows by seeds."""

import functools
from collections.abc import Callable
from typing import Any

import click

from mnist_ray.cli.help import option
from mnist_ray.cli.options import DEFAULT_MARGIN, MARGIN_TYPE
from mnist_ray.grids.growth import LOOKS, GrowthOptions, deadline_of, read_looks


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
        if margin is not None and not until_settled and budget is None:
            raise click.UsageError("--margin goes with --until-settled or --budget")
        options = GrowthOptions(
            until_settled,
            None if looks is None else read_looks(looks),
            DEFAULT_MARGIN if margin is None else margin,
            deadline_of(budget),
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
