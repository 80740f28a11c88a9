import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from mnist_ray.analysis.estimates import (
    BETTER,
    EQUIVALENT,
    UNRESOLVED,
    WORSE,
    Estimate,
    Estimates,
    estimate,
    make_block,
    placed,
    seeds_to_decide,
    unknown,
)
from mnist_ray.analysis.max_t import Chance, Pairs, Weighted, all_pairs
from tests.support.simulated_scores import simulated

MARGIN = 0.005


def judged(values: NDArray[np.generic], *, margin: float | None = MARGIN) -> Estimates:
    """All pairs of settings; an example differs if the sum over the seeds does."""
    block = make_block(np.arange(len(values)), values)
    family = all_pairs(len(values))
    sums = values.sum(axis=1, dtype=np.float64)
    pairs = [(first, second) for second in range(len(sums)) for first in range(second + 1, len(sums))]
    counts = [(sums[first] != sums[second]).sum() for first, second in pairs]
    return estimate(block, family, block.chance(family), num_differing=np.array(counts), margin=margin)


def right_on(count: int, *, of: int = 1000, num_seeds: int = 3) -> NDArray[np.bool_]:
    """Every seed is right on the same first examples."""
    return np.tile(np.arange(of) < count, (num_seeds, 1))


def columns(generator: np.random.Generator, count: int, *, margin: float | None) -> Estimates:
    difference = generator.normal(size=count) * generator.choice([0.002, 0.05], size=count)
    half = generator.exponential(0.01, size=count)
    nothing = generator.random(count) < 0.05
    low, high = np.where(nothing, np.nan, difference - half), np.where(nothing, np.nan, difference + half)
    seed, example = generator.exponential(1e-6, size=(2, count))
    num_seeds, differing = generator.integers(1, 6, count), generator.integers(0, 30, count)
    return Estimates(difference, low, high, half, seed, example, num_seeds, differing, critical=3.0, margin=margin)


@pytest.mark.parametrize("margin", [MARGIN, None])
def test_words_say_what_a_thousand_random_intervals_say(margin: float | None) -> None:
    found = columns(np.random.default_rng(0), 1000, margin=margin)
    words = found.verdicts().tolist()
    assert set(words) == {BETTER, WORSE, UNRESOLVED} | ({EQUIVALENT} if margin else set())
    for place, word in enumerate(words):
        low, high, num_seeds = found.low[place], found.high[place], found.num_seeds[place]
        excludes_zero = not np.isnan(low) and not low <= 0 <= high
        inside = margin is not None and not np.isnan(low) and -margin <= low and high <= margin
        if num_seeds > 1 and excludes_zero and found.num_differing[place] >= 6:
            # More accuracy is better, and less loss.
            assert word == (BETTER if (low > 0) == (margin is not None) else WORSE)
        else:
            assert word == (EQUIVALENT if inside and num_seeds > 1 else UNRESOLVED)
        row = found.rows([place])[0]
        few = num_seeds > 1 and excludes_zero and found.num_differing[place] < 6 and word == UNRESOLVED
        small = " by less than the margin" if inside and word in (BETTER, WORSE) else ""
        assert row.verdict_words == (f"{UNRESOLVED}: fewer than 6 examples differ" if few else f"{word}{small}")
        assert row.reversed().verdict_words == row.verdict_words or row.is_decided
        assert (row.verdict, row.is_small, row.is_decided) == (word, inside, word in (BETTER, WORSE))


def test_words_of_a_thousand_random_data_sets_agree_with_their_intervals() -> None:
    generator = np.random.default_rng(1)
    seen = set()
    for _ in range(1000 // 28 + 1):
        shape = 8, int(generator.integers(2, 5)), int(generator.integers(20, 3_000))
        rates = generator.choice([0.9, 0.99, 0.999, 1.0], size=(8, 1, 1))
        block = make_block(np.arange(8), generator.random(shape) < rates)
        family = all_pairs(8)
        # The words and intervals don't depend on where the critical value comes from.
        drawn = Chance(np.full(10, generator.uniform(2, 4), dtype=np.float32), np.zeros(0))
        differing = generator.integers(0, 30, 28)
        found = estimate(block, family, drawn, num_differing=differing, margin=MARGIN)
        error = np.sqrt(found.seed_variance + found.example_variance)
        for row, of_row, count in zip(found.rows(), error, differing.tolist(), strict=True):
            assert row.low is not None
            assert row.high is not None
            assert -1 <= row.low <= row.difference <= row.high <= 1
            assert row.is_decided == (abs(row.difference) > found.critical * of_row and count >= 6)
            assert not (row.verdict == EQUIVALENT and max(-row.low, row.high) > MARGIN)
            seen.add(row.verdict)
    assert seen == {BETTER, WORSE, EQUIVALENT, UNRESOLVED}


def test_one_seed_resolves_nothing_however_sure_the_examples_are() -> None:
    values = np.stack([right_on(count, num_seeds=1) for count in (1000, 300, 300, 0)])
    for row in judged(values).rows():
        assert (row.verdict, row.p_value, row.seed_variance, row.num_seeds_needed) == (UNRESOLVED, None, None, None)
        assert row.low is not None
    assert judged(values).low[0] < -0.6


@pytest.mark.parametrize(("count", "word"), [(5, UNRESOLVED), (9, BETTER)])
def test_a_word_takes_more_than_five_differing_examples(count: int, word: str) -> None:
    (row,) = judged(np.stack([right_on(900), right_on(900 + count)])).rows()
    assert row.difference == pytest.approx(count / 1000)
    assert row.verdict == word
    assert row.low is not None
    # The interval of five examples is that of more: only the word is withheld.
    assert row.low > 0


def test_identical_settings_are_never_better_or_worse() -> None:
    generator = np.random.default_rng(2)
    for num_examples in (2, 30, 3_000):
        one = generator.random((3, num_examples)) < 0.9
        found = judged(np.stack([one, one, generator.random((3, num_examples)) < 0.5, one]))
        same = found.rows([0, 2, 4])
        for row in same:
            assert (row.difference, row.p_value) == (0.0, 1.0)
            assert row.verdict == (EQUIVALENT if num_examples == 3_000 else UNRESOLVED)


def test_equivalent_settings_lie_within_the_margin() -> None:
    generator = np.random.default_rng(3)
    one = np.tile(generator.random(10_000) < 0.97, (3, 1))
    other = one.copy()
    other[:, [*np.flatnonzero(one[0])[:10], *np.flatnonzero(~one[0])[:10]]] ^= True
    assert judged(np.stack([one, other])).rows()[0].verdict == EQUIVALENT
    assert judged(np.stack([one, other]), margin=0.0005).rows()[0].verdict == UNRESOLVED
    # A sure difference below the margin is named, with the remark that it is small.
    other = one.copy()
    other[:, np.flatnonzero(one[0])[:30]] = False
    (row,) = judged(np.stack([one, other])).rows()
    assert row.difference == pytest.approx(-0.003)
    assert (row.verdict, row.is_small) == (WORSE, True)
    assert row.verdict_words == "worse by less than the margin"
    assert row.reversed().verdict_words == "better by less than the margin"
    assert not judged(np.stack([one, other]), margin=0.003).rows()[0].is_small


def test_intervals_end_at_the_largest_possible_differences() -> None:
    values = np.stack([right_on(0, of=4), right_on(4, of=4), right_on(2, of=4)])
    found = judged(values)
    assert found.high.tolist()[0] == 1.0
    assert found.low.min() >= -1
    block = make_block(np.arange(4), np.stack([right_on(count, of=4) for count in (0, 4, 4, 0)]))
    interaction = Weighted(np.array([[1.0, -1, -1, 1]]))
    drawn = block.chance([interaction])
    (row,) = estimate(block, [interaction], drawn, num_differing=np.array([4]), margin=MARGIN).rows()
    assert (row.difference, row.low) == (-2.0, -2.0)
    # Losses have no largest difference.
    assert judged(np.random.default_rng(0).normal(size=(2, 2, 3)) * 9, margin=None).high[0] > 1


def test_the_seeds_needed_are_the_fewest_that_are_enough() -> None:
    found = columns(np.random.default_rng(4), 300, margin=MARGIN)
    none, counts = found.num_seeds == 0, np.arange(2, 10_000)
    for place, needed in enumerate(found.seeds_needed().tolist()):
        v_seed, v_example = found.seed_variance[place], found.example_variance[place]
        half_widths = 3.0 * np.sqrt(v_seed * found.num_seeds[place] / counts + v_example)
        enough = counts[half_widths <= MARGIN]
        none[place] = not len(enough)
        assert needed == enough[0] if len(enough) else np.isnan(needed)
    assert 0 < none.sum() < 300


def test_the_seeds_needed_by_hand_and_where_no_number_is_enough() -> None:
    one = np.array([1.0])
    base = Estimates(one, one, one, one, one, one, np.array([5]), np.array([9]), critical=2.0, margin=0.01)

    def needed(seed: float, example: float, *, margin: float | None = 0.01) -> float:
        parts = replace(base, seed_variance=np.array([seed]), example_variance=np.array([example]), margin=margin)
        return float(parts.seeds_needed()[0])

    # 2 sqrt(5 v / S) <= 0.01: S >= 5 v / 0.000025.
    assert needed(0.0001, 0.0) == 20
    assert needed(0.000101, 0.0) == 21
    assert needed(0.0001, 0.0000125) == 40
    assert needed(0.0, 0.0) == 2
    for nothing in (needed(0.0001, 0.000025), needed(np.nan, 0.0), needed(0.0001, 0.0, margin=None), needed(1.0, 0.0)):
        assert np.isnan(nothing)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_has_neither_p_value_nor_interval(value: float) -> None:
    (row,) = unknown(np.array([value]), num_seeds=3, margin=None).rows()
    expected = (None, None, None, None, None, None, UNRESOLVED)
    assert (
        row.low,
        row.high,
        row.p_value,
        row.seed_variance,
        row.example_variance,
        row.num_seeds_needed,
        row.verdict,
    ) == expected
    assert (row.num_seeds, row.is_small, row.is_decided) == (3, False, False)


def test_a_constant_difference_of_losses_says_nothing_of_its_uncertainty() -> None:
    # Neither the means of these nor their squares are exact in floats.
    base = np.random.default_rng(5).random((3, 700))
    found = judged(np.stack([base, base + 0.1, base]), margin=None)
    assert found.difference == pytest.approx([0.1, 0.0, -0.1])
    assert [(row.low is None, row.p_value) for row in found.rows()] == [(True, None), (False, 1.0), (True, None)]
    assert found.verdicts().tolist() == [UNRESOLVED] * 3
    assert found.rows([1])[0].low == pytest.approx(0.0, abs=1e-9)


def test_copies_of_a_setting_do_not_widen_the_intervals_of_losses() -> None:
    generator = np.random.default_rng(6)
    losses = generator.exponential(size=(4, 3, 400)) + generator.normal(size=(4, 3, 1)) * 0.1
    assert judged(losses, margin=None).critical == pytest.approx(3.62, abs=0.2)
    assert judged(losses[[0, 1, 2, 3, 3, 0]], margin=None).critical == pytest.approx(3.67, abs=0.2)
    # A pair of copies alone has no chance of a difference.
    block = make_block(np.arange(4), losses[[0, 1, 2, 0]])
    assert not block.chance([Pairs(np.array([3]), 0)]).largest.max() > 1e-6


def test_copies_of_a_setting_do_not_widen_the_intervals_of_accuracies() -> None:
    correct = simulated(np.random.default_rng(14), [0.0] * 8, num_seeds=3, num_examples=10_000)
    five, with_copies = (judged(correct[places]).critical for places in ([0, 4, 5, 6, 7], [0, 0, 0, 0, 4, 5, 6, 7]))
    assert with_copies == pytest.approx(five, abs=0.3)


def test_a_reversed_estimate_is_the_opposite() -> None:
    row = Estimate(0.02, -0.01, 0.05, 0.3, 1e-4, 1e-5, 3, 40, BETTER, MARGIN)
    assert row.reversed() == replace(row, difference=-0.02, low=-0.05, high=0.01, verdict=WORSE)
    assert row.reversed().reversed() == row
    zero = replace(row, difference=0.0, low=None, high=None, verdict=EQUIVALENT).reversed()
    assert (str(zero.difference), zero.low, zero.verdict) == ("0.0", None, EQUIVALENT)


def test_columns_hold_what_rows_hold_and_null_for_nothing() -> None:
    for margin in (MARGIN, None):
        found = columns(np.random.default_rng(7), 40, margin=margin)
        named = {name: np.ma.asarray(column).tolist() for name, column in found.columns().items()}
        for place, row in enumerate(found.rows()):
            assert {name: column[place] for name, column in named.items()} == vars(row)
        assert None in named["low"]


def test_parts_of_a_family_come_back_in_its_order() -> None:
    found = columns(np.random.default_rng(8), 5, margin=MARGIN)
    place = np.array([3, 0])
    parts = [unknown(found.difference[[1]], num_seeds=2, margin=MARGIN)]
    parts.append(replace(parts[0], difference=found.difference[place][:1]))
    together = placed([(np.array([1]), parts[0]), (np.array([0]), parts[1])], margin=MARGIN)
    assert together.difference.tolist() == [found.difference[3], found.difference[1]]
    assert len(placed([], margin=None)) == 0
    assert placed([], margin=None).rows() == []


def test_seeds_to_decide_are_those_at_which_the_same_difference_has_a_word() -> None:
    def estimate(difference: float, num_seeds: int) -> Estimate:
        half = 2.5 * math.sqrt(2e-6 * 3 / num_seeds + 1e-6)
        variances = 2e-6 * 3 / num_seeds, 1e-6
        return Estimate(
            difference, difference - half, difference + half, 0.1, *variances, num_seeds, 3, "unresolved", 0.005
        )

    for difference in (0.0004, 0.002, 0.003):
        needed = seeds_to_decide(estimate(difference, 3))
        has_word = [
            max(-one.low, one.high) <= 0.005 or one.low > 0
            for one in (estimate(difference, count) for count in range(1, 200))
            if one.low is not None and one.high is not None
        ]
        # More seeds than now, also where fewer would do.
        assert needed == max(has_word.index(True) + 1, 4)
    # Whatever the seeds, the examples leave it open.
    assert seeds_to_decide(estimate(0.0025, 3)) is None
