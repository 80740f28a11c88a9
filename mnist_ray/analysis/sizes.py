"""What a level of a grid's axis is worth in training images, from its accuracies with several numbers of images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mnist_ray.analysis.effects import differing
from mnist_ray.analysis.estimates import BETTER, MARGIN, WORSE, Block, estimate
from mnist_ray.analysis.max_t import Weighted

_Floats = NDArray[np.float64]
# Axis -> level, as level_text.
Levels = Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Differences:
    """A line's accuracy with a number of images (rows) less the reference's with a number of images (columns).

    Attributes:
      mean, low, high: with the ends of the joint 95 % interval, float64 [sizes, sizes].
      is_decided: bool [sizes, sizes], whether the verdict is better or worse.
    """

    mean: _Floats
    low: _Floats
    high: _Floats
    is_decided: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Line:
    """The mean accuracies of some settings with several numbers of training images, fractions.

    Attributes:
      levels: what the settings have in common; the accuracies are averaged over the other axes.
      means: float64 [sizes].
      against: its differences from the reference; None for the reference itself.
    """

    levels: Levels
    means: _Floats
    against: Differences | None


@dataclass(frozen=True, eq=False)
class Sizes:
    """Accuracy against training images.

    Attributes:
      num_images: ascending int64 [sizes], the numbers of images with which all combinations of the other axes exist.
      left_out: the other numbers of images.
      num_seeds: that were averaged.
      of_axes: for each other axis, a line for each level, the reference first; all differences are one family.
      drawn: the same lines to look at: one group with a line for each combination of levels, the reference first, if
        these are few, and with a family of their own; otherwise of_axes.
    """

    num_images: NDArray[np.int64]
    left_out: list[int]
    num_seeds: int
    of_axes: list[list[Line]]
    drawn: list[list[Line]]


@dataclass(frozen=True)
class Worth:
    """How many more images the reference needs for the accuracy of a level; fewer than 0 if the level costs.

    Attributes:
      num_images: that the level is trained with.
      images: the estimate; None if the reference's line doesn't meet the accuracy exactly once.
      low, high: the joint 95 % interval; None where it goes beyond the numbers of images of the grid.
    """

    num_images: int
    images: float | None
    low: float | None
    high: float | None


def sizes_of(
    block: Block,
    num_images: NDArray[np.int64],
    settings: Sequence[Levels],
    levels: Mapping[str, Sequence[str]],
    *,
    most_lines: int,
) -> Sizes:
    """Returns the accuracies against training images; without lines if fewer than two sizes are complete.

    Args:
      block: right and wrong answers of the settings.
      num_images: that each setting was trained with, [settings].
      settings: the levels of each setting.
      levels: the levels of each axis but that of the size, the reference first.
      most_lines: combinations of levels that are few.
    """
    combinations = [dict(zip(levels, each, strict=True)) for each in product(*levels.values())]
    counts = {
        size: Counter(
            tuple(setting[axis] for axis in levels)
            for setting, number in zip(settings, num_images, strict=True)
            if number == size
        )
        for size in np.unique(num_images).tolist()
    }
    # Two limits above the number of images give the same size twice, in all combinations.
    complete = [
        size for size, count in counts.items() if len(count) == len(combinations) and len({*count.values()}) == 1
    ]
    left_out = [size for size in counts if size not in complete]
    sizes = np.array(complete, dtype=np.int64)
    if len(sizes) < 2:
        return Sizes(sizes, left_out, block.squares.num_seeds, [], [])

    def family(groups: Sequence[Sequence[Levels]]) -> list[list[Line]]:
        at_sizes = num_images == sizes[:, None]
        return _family(block, [[(each, at_sizes & _have(settings, each)) for each in group] for group in groups])

    of_axes = family([[{axis: text} for text in texts] for axis, texts in levels.items()])
    are_few = len(levels) != 1 and len(combinations) <= most_lines
    drawn = family([combinations]) if are_few else of_axes
    return Sizes(sizes, left_out, block.squares.num_seeds, of_axes, drawn)


def _have(settings: Sequence[Levels], levels: Levels) -> NDArray[np.bool_]:
    return np.array([all(setting[axis] == text for axis, text in levels.items()) for setting in settings])


def _family(block: Block, groups: Sequence[Sequence[tuple[Levels, NDArray[np.bool_]]]]) -> list[list[Line]]:
    """Returns groups of lines, whose differences from the first line of their group are judged together.

    Args:
      groups: the levels of each line, and which settings are averaged for each size, bool [sizes, settings].
    """
    weights = [[averaged / averaged.sum(axis=1, keepdims=True) for _, averaged in group] for group in groups]
    contrasts = [
        Weighted((line[:, None] - of_group[0]).reshape(-1, line.shape[1]))
        for of_group in weights
        for line in of_group[1:]
    ]
    against: list[Differences] = []
    if contrasts:
        num_differing = np.concatenate([differing(block, each.weights) for each in contrasts])
        found = estimate(block, contrasts, block.chance(contrasts), num_differing=num_differing, margin=MARGIN)
        columns = found.difference, found.low, found.high, np.isin(found.verdicts(), [BETTER, WORSE])
        count = len(weights[0][0])
        against = [Differences(*each) for each in zip(*(one.reshape(-1, count, count) for one in columns), strict=True)]
    others = iter(against)
    return [
        [
            Line(levels, weight @ block.squares.means, next(others) if place else None)
            for place, ((levels, _), weight) in enumerate(zip(group, of_group, strict=True))
        ]
        for group, of_group in zip(groups, weights, strict=True)
    ]


def worth_of(num_images: NDArray[np.int64], against: Differences) -> Worth | None:
    """Returns what a level is worth with the largest number of images where that is told; None if it is nowhere.

    The reference's accuracy is taken as straight over the logarithm of the number of images between two sizes, so the
    differences and the ends of their intervals are straight, too. The level reaches the reference's accuracy where the
    difference is 0. The interval begins where the reference is no longer surely below the level, and ends where it is
    surely above. Numbers of images where both ends lie inside the grid's come first.
    """
    found = [_worth(num_images, against, place) for place in range(len(num_images))]
    told = [one for one in found if (one.low or 0) >= 1 or (one.high or 0) <= -1]
    return max(told, key=lambda one: (one.low is not None and one.high is not None, one.num_images), default=None)


def _worth(num_images: NDArray[np.int64], against: Differences, place: int) -> Worth:
    mean, low, high, is_decided = (
        values[place] for values in (against.mean, against.low, against.high, against.is_decided)
    )
    at, over = int(num_images[place]), np.log(num_images)
    low, high = np.where(is_decided, low, np.minimum(low, 0)), np.where(is_decided, high, np.maximum(high, 0))
    first, last = _end(over, mean), _end(over[::-1], -mean[::-1])
    meets_once = first is not None and last is not None and np.isclose(first, last)
    ends = first if meets_once else None, _end(over, low), _end(over[::-1], -high[::-1])
    return Worth(at, *(None if end is None else float(np.exp(end)) - at for end in ends))


def _end(over: _Floats, values: _Floats) -> float | None:
    """Returns up to where straight lines between the values are above 0; None if the first value isn't."""
    if not values[0] > 0:
        return None
    place = int((values <= 0).argmax())
    if not place:
        return float(over[-1])
    share = values[place - 1] / (values[place - 1] - values[place])
    return float(over[place - 1] + share * (over[place] - over[place - 1]))
