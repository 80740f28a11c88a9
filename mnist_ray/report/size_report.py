"""Accuracy against training images of an evaluation's grid: its lines, and what they say in sentences."""

import json
from collections.abc import Iterator

import numpy as np

from mnist_ray.analysis.blocks import Blocks
from mnist_ray.analysis.effects import Axes, evaluated_levels, level_text
from mnist_ray.analysis.sizes import Sizes, Worth, sizes_of, worth_of
from mnist_ray.report import limits
from mnist_ray.report.evaluated_settings import EvaluatedSettings
from mnist_ray.results.columns import setting_in
from mnist_ray.results.setting_words import level_words

_SIZE = "train_limit"


def report_sizes(evaluated: EvaluatedSettings, blocks: Blocks, axes: Axes) -> Sizes | None:
    """Returns the accuracies against training images; None for a grid without several sizes, and for searches.

    Args:
      evaluated: two settings or more.
      blocks: of these settings, see `blocks_of_effects`.
    """
    block = blocks.accuracy
    if _SIZE not in axes.levels or axes.ranges or axes.follows_results or block is None:
        return None
    groups = list(evaluated.groups.values())
    rows = [next(iter(groups[place].values())) for place in block.places]
    settings = [{axis: setting_in(row, axis) for axis in axes.levels} for row in rows]
    num_images = np.array([row["num_train_images"] for row in rows])
    levels = evaluated_levels({axis: of_axis for axis, of_axis in axes.levels.items() if axis != _SIZE}, settings)
    if len(np.unique(num_images)) < 2:
        return None
    texts = [{axis: level_text(setting[axis]) for axis in levels} for setting in settings]
    return sizes_of(block, num_images, texts, levels, most_lines=limits.LINES)


def worth_sentences(sizes: Sizes | None) -> Iterator[str]:
    """Yields a sentence for each level of which the worth in training images is told."""
    if sizes is None:
        return
    for line in (line for group in sizes.of_axes for line in group):
        worth = worth_of(sizes.num_images, line.against) if line.against else None
        if worth is not None:
            ((axis, text),) = line.levels.items()
            what = level_words(axis, json.loads(text))
            yield f"{what[:1].upper()}{what[1:]} {_worth(worth)} at {worth.num_images:,} training images."


def left_out_words(sizes: Sizes | None) -> str | None:
    """Returns which numbers of training images have no point on the lines; None if all have one."""
    if sizes is None or not sizes.left_out:
        return None
    numbers = "; ".join(f"{number:,}" for number in sizes.left_out)
    return f"Accuracy against training images is without {numbers}: not all combinations have their runs there."


def _worth(worth: Worth) -> str:
    verb, images, low, high = "is worth", worth.images, worth.low, worth.high
    if high is not None and high < 0:
        verb, images, low, high = "costs", *(None if end is None else -end for end in (images, high, low))
    assert low is not None
    if images is None:
        return f"{verb} {_about(low)} to {_about(high)} images" if high else f"{verb} more than {_about(low)} images"
    return f"{verb} about {_about(images)} images ({_about(low)} {f'to {_about(high)}' if high else 'or more'})"


def _about(images: float) -> str:
    """Returns a number of images with two digits that count."""
    return f"{float(f'{images:.2g}'):,.0f}"
