from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from mnist_ray.analysis.blocks import Scores, make_blocks
from mnist_ray.analysis.sizes import Differences, Sizes, Worth, sizes_of, worth_of
from tests.support import moderated_max_t as reference
from tests.support.simulated_scores import scores_of, simulated

IMAGES = np.array([100, 200, 400, 800])
DRAWS = [8, pytest.param(200, marks=[pytest.mark.series, pytest.mark.timeout(3600)])]
BATCH_NORM = {"batch_norm": ["false", "true"]}
TWO = {**BATCH_NORM, "dropout": ["0", "0.3", "0.5"]}


def against(rows: Sequence[Sequence[float]], half: float, *, is_decided: bool = True) -> Differences:
    """Differences with intervals of the same half width."""
    mean = np.array(rows, dtype=float)
    low, high = mean - half, mean + half
    return Differences(mean, low, high, ((low > 0) | (high < 0)) & is_decided)


def at(place: int, row: Sequence[float], half: float) -> Worth | None:
    """The worth of a level that is as good as its reference with all numbers of images but one."""
    rows = np.zeros((4, 4))
    rows[place] = row
    return worth_of(IMAGES, against(rows.tolist(), half))


def settings_of(levels: dict[str, list[str]], num_sizes: int) -> list[dict[str, str]]:
    """The levels of each setting, the sizes running fastest."""
    combinations = product(*levels.values())
    return [dict(zip(levels, each, strict=True)) for each in combinations for _ in range(num_sizes)]


def sizes(correct: NDArray[np.bool_], levels: dict[str, list[str]], *, most_lines: int = 6) -> Sizes:
    """The accuracies of all combinations, each with the first numbers of images."""
    count = len(correct) // len(settings_of(levels, 1))
    block = make_blocks(scores_of(correct)).accuracy
    assert block is not None
    num_images = np.tile(IMAGES[:count], len(correct) // count)
    return sizes_of(block, num_images, settings_of(levels, count), levels, most_lines=most_lines)


def worths(found: Sizes) -> list[Worth | None]:
    return [
        worth_of(found.num_images, line.against)
        for group in found.of_axes
        for line in group
        if line.against is not None
    ]


def test_the_worth_lies_where_the_references_line_over_the_logarithm_meets_the_accuracy() -> None:
    # 0.04 above the reference at 200 images, half of the way down to 400: at 200 * sqrt(2).
    worth = at(1, [0.12, 0.04, -0.04, -0.08], 0.02)
    assert worth is not None
    assert worth.num_images == 200
    assert worth.images == pytest.approx(200 * 2**0.5 - 200)
    # The interval is 0 a quarter and three quarters of the way.
    assert (worth.low, worth.high) == pytest.approx((200 * 2**0.25 - 200, 200 * 2**0.75 - 200))
    costs = at(2, [0.08, 0.04, -0.04, -0.12], 0.02)
    assert costs is not None
    assert (costs.num_images, costs.images) == (400, pytest.approx(200 * 2**0.5 - 400))
    assert (costs.low, costs.high) == pytest.approx((200 * 2**0.25 - 400, 200 * 2**0.75 - 400))


def test_the_largest_number_of_images_where_both_ends_lie_inside_counts() -> None:
    rows = [[0.04, -0.04, -0.1, -0.1], [0.1, 0.04, -0.04, -0.1], [0.2, 0.1, 0.04, -0.01], [0.2, 0.2, 0.1, 0.04]]
    worth = worth_of(IMAGES, against(rows, 0.02))
    assert worth is not None
    assert worth.num_images == 200
    # With 400 images the upper end is beyond the grid, but not the estimate.
    worth = worth_of(IMAGES, against([[0.0] * 4, [0.0] * 4, *rows[2:]], 0.02))
    assert worth is not None
    assert (worth.num_images, worth.images, worth.high) == (400, pytest.approx(400 * 2**0.8 - 400), None)
    assert worth.low == pytest.approx(400 * 2**0.4 - 400)


def test_beyond_the_trained_sizes_there_is_no_number() -> None:
    assert at(1, [0.3, 0.2, 0.1, 0.05], 0.02) == Worth(200, None, pytest.approx(600), None)
    # Better than the reference with all images, with no more images than it.
    assert at(3, [0.3, 0.2, 0.1, 0.05], 0.02) is None
    assert at(2, [-0.05, -0.1, -0.2, -0.3], 0.02) == Worth(400, None, None, pytest.approx(-300))
    assert at(0, [-0.05, -0.1, -0.2, -0.3], 0.02) is None


def test_a_reference_that_rises_and_falls_gives_an_interval_without_an_estimate() -> None:
    # Above the reference with 100 images, below it with 200, above it with 400.
    worth = at(0, [0.1, -0.01, 0.01, -0.1], 0.005)
    assert worth is not None
    assert worth.images is None
    assert (worth.low, worth.high) == pytest.approx((100 * 2 ** (0.095 / 0.11) - 100, 400 * 2 ** (0.015 / 0.11) - 100))
    # More images make the reference surely worse.
    assert at(1, [-0.1, -0.05, 0.05, 0.1], 0.02) is None


def test_undecided_differences_tell_nothing() -> None:
    rows = [[0.12, 0.04, -0.04, -0.08]] * 4
    assert worth_of(IMAGES, against(rows, 0.02)) is not None
    assert worth_of(IMAGES, against(rows, 0.02, is_decided=False)) is None


def test_lines_are_averages_and_their_differences_one_family() -> None:
    correct = simulated(
        np.random.default_rng(0), [-0.1 + 0.01 * (place % 3) for place in range(18)], num_seeds=3, num_examples=500
    )
    found = sizes(correct, TWO)
    cells = np.eye(18).reshape(2, 3, 3, 18)
    lines = [[cells[0].mean(axis=0), cells[1].mean(axis=0)], [cells[:, level].mean(axis=0) for level in range(3)]]
    weights = [(other[:, None] - group[0]).reshape(9, 18) for group in lines for other in group[1:]]
    expected = reference.compare(correct, np.concatenate(weights))
    assert found.num_images.tolist() == [100, 200, 400]
    assert [[line.levels for line in group] for group in found.of_axes] == [
        [{"batch_norm": text} for text in ("false", "true")],
        [{"dropout": text} for text in ("0", "0.3", "0.5")],
    ]
    means = correct.mean(axis=(1, 2))
    for group, of_group in zip(found.of_axes, lines, strict=True):
        for line, averaged in zip(group, of_group, strict=True):
            assert line.means == pytest.approx(averaged @ means)
    others = [line.against for group in found.of_axes for line in group[1:]]
    for place, each in enumerate(others):
        assert each is not None
        at_sizes = slice(9 * place, 9 * place + 9)
        assert each.mean.ravel() == pytest.approx(expected.d[at_sizes], abs=1e-12)
        half = expected.crit * expected.se[at_sizes]
        assert (each.high - each.low).ravel() / 2 == pytest.approx(half, rel=0.04)


def test_few_combinations_are_drawn_one_by_one_and_many_per_axis() -> None:
    correct = simulated(np.random.default_rng(0), [-0.1] * 12, num_seeds=2, num_examples=100)
    few, many = sizes(correct, TWO), sizes(correct, TWO, most_lines=5)
    assert [line.levels for line in few.drawn[0]] == settings_of(TWO, 1)
    assert len(few.drawn) == 1
    assert few.drawn[0][4].means == pytest.approx(correct[8:10].mean(axis=(1, 2)))
    assert many.drawn is many.of_axes
    alone = sizes(correct[:4], {})
    assert (alone.of_axes, [line.against for line in alone.drawn[0]]) == ([], [None])
    assert alone.drawn[0][0].means == pytest.approx(correct[:4].mean(axis=(1, 2)))


# Accuracies 1 - 3.2 / sqrt(images): 75, 86, 90 and 93 %.
TRAINED = np.array([160, 500, 1_000, 2_000])


def learned(factor: float, *, num_seeds: int, seed: int) -> list[Scores]:
    """Scores of a reference, then of a level with which each image counts as much as `factor` of them."""
    images = np.concatenate([TRAINED, factor * TRAINED])
    gains = 0.03 - 3.2 / np.sqrt(images)
    generator = np.random.default_rng(seed)
    return scores_of(simulated(generator, gains.tolist(), num_seeds=num_seeds, num_examples=1_000))


def worth_in(scores: Sequence[Scores]) -> Worth | None:
    """The worth from the settings of which no run is missing."""
    block = make_blocks(scores).accuracy
    assert block is not None
    settings = settings_of(BATCH_NORM, 4)
    found = sizes_of(
        block,
        np.tile(TRAINED, 2)[block.places],
        [settings[place] for place in block.places],
        BATCH_NORM,
        most_lines=6,
    )
    return worths(found)[0]


@pytest.mark.parametrize("num_draws", DRAWS)
@pytest.mark.parametrize("factor", [1.8, 0.5])
def test_a_known_worth_is_covered_and_has_its_sign(factor: float, num_draws: int) -> None:
    found = [worth_in(learned(factor, num_seeds=3, seed=seed)) for seed in range(num_draws)]
    told = [worth for worth in found if worth is not None]
    assert len(told) >= 0.9 * num_draws
    wrong = 0
    for worth in told:
        low = -np.inf if worth.low is None else worth.low
        high = np.inf if worth.high is None else worth.high
        assert low > 0 if factor > 1 else high < 0
        wrong += not low <= (factor - 1) * worth.num_images <= high
    assert wrong <= 0.05 * num_draws
    estimates = [worth.images / worth.num_images for worth in told if worth.images is not None]
    assert np.median(estimates) == pytest.approx(factor - 1, abs=0.15)


@pytest.mark.parametrize("num_draws", DRAWS)
def test_nothing_is_told_of_a_level_without_effect(num_draws: int) -> None:
    found = [worth_in(learned(1.0, num_seeds=3, seed=seed)) for seed in range(num_draws)]
    # Rarer than 5 %: of the pairs of sizes, only few are near enough to tell a worth.
    assert sum(worth is not None for worth in found) <= 0.05 * num_draws


def test_one_seed_tells_no_worth() -> None:
    assert worth_in(learned(10.0, num_seeds=3, seed=0)) is not None
    assert worth_in(learned(10.0, num_seeds=1, seed=0)) is None


def test_a_size_without_all_combinations_is_left_out() -> None:
    correct = simulated(np.random.default_rng(0), [-0.1] * 8, num_seeds=3, num_examples=200)
    block = make_blocks(scores_of(correct[:7])).accuracy
    assert block is not None
    settings, num_images = settings_of(BATCH_NORM, 4)[:7], np.tile(IMAGES, 2)[:7]
    found = sizes_of(block, num_images, settings, BATCH_NORM, most_lines=6)
    assert (found.num_images.tolist(), found.left_out) == ([100, 200, 400], [800])
    assert found.of_axes[0][1].means == pytest.approx(correct[4:7].mean(axis=(1, 2)))
    # Two limits may give the same images.
    few = sizes_of(block, np.where(num_images > 100, num_images, 200), settings, BATCH_NORM, most_lines=6)
    assert few.num_images.tolist() == [200, 400]
    assert few.of_axes[0][0].means[0] == pytest.approx(correct[:2].mean())
    # One size is no line.
    alone = sizes_of(block, np.array([100, 200, 400, 800, 100, 300, 500]), settings, BATCH_NORM, most_lines=6)
    assert (alone.num_images.tolist(), alone.left_out) == ([100], [200, 300, 400, 500, 800])
    assert (alone.of_axes, alone.drawn) == ([], [])
