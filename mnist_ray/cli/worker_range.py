"""The value of --num-workers where a run may gain and lose workers."""

from typing import Any

import click

from mnist_ray.config.placement import Workers


class WorkerRange(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.3
    """Fewest and most workers: N, or MIN:MAX."""

    name = "N or MIN:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Workers:
        """See click.ParamType."""
        if isinstance(value, Workers):
            return value
        ends = str(value).split(":")
        if len(ends) > 2 or not all(end.isdecimal() and end.isascii() for end in ends):
            self.fail(f"{value!r} is neither a number nor MIN:MAX, such as 2 or 2:8", param, ctx)
        least, most = int(ends[0]), int(ends[-1])
        if not 1 <= least <= most:
            self.fail(f"{value!r}: needs 1 <= MIN <= MAX", param, ctx)
        return Workers(least, most)
