from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mnist_ray.analysis.comparisons import (
    Comparison,
    Interval,
    Scores,
    compare,
    mcnemar,
    paired_interval,
    seeds_needed,
    tie_groups,
)
from mnist_ray.analysis.selection import select, selection_bias


def scores(label: str, correct: NDArray[np.bool_], *, seeds: tuple[int, ...] | None = None) -> Scores:
    """Runs whose loss is 0.5 on a wrong example and 0 on a right one."""
    loss = np.where(correct, 0.0, 0.5).astype(np.float32)
    return Scores(label, seeds or tuple(range(len(correct))), correct, loss)


def right_on(count: int, *, of: int = 100, num_seeds: int = 3, first: int = 0) -> NDArray[np.bool_]:
    """Every seed is right on the same examples, count of them from first on."""
    return np.tile((np.arange(of) >= first) & (np.arange(of) < first + count), (num_seeds, 1))


# Standard errors of the mean difference that come from seeds, examples and the residual.
MIXES = {
    "seeds dominate": (1.0, 0.05, 0.05),
    "examples dominate": (0.05, 1.0, 0.1),
    "residuals dominate": (0.1, 0.1, 1.0),
    "all alike": (1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("num_seeds", [3, pytest.param(5, marks=pytest.mark.series), 10])
@pytest.mark.parametrize("mix", MIXES)
def test_the_interval_covers_a_known_difference_as_often_as_it_says(mix: str, num_seeds: int) -> None:
    generator = np.random.default_rng(5)
    num_examples, difference = 100, 0.7
    seed, example, residual = (
        error * scale**0.5
        for error, scale in zip(MIXES[mix], (num_seeds, num_examples, num_seeds * num_examples), strict=True)
    )
    covered = 0
    for _ in range(1000):
        drawn = (
            difference
            + seed * generator.normal(size=(num_seeds, 1))
            + example * generator.normal(size=(1, num_examples))
            + residual * generator.normal(size=(num_seeds, num_examples))
        )
        found = paired_interval(drawn)
        covered += found.low <= difference <= found.high
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
    assert 0.93 <= covered / 1000 <= 0.97


def test_the_interval_covers_the_difference_of_right_and_wrong_answers() -> None:
    generator = np.random.default_rng(6)
    shape = (5, 1000)

    def answers(count: int, skill: float) -> NDArray[np.float64]:
        """Each model has a skill, each example a difficulty, which the settings share in part."""
        skills = skill + 0.1 * generator.normal(size=(count, shape[0], 1))
        noise = skills + 0.5 * generator.normal(size=(count, 1, shape[1])) + generator.logistic(size=(count, *shape))
        return (noise > difficulty[:count]).astype(np.float64)

    difficulty = 2 * generator.normal(size=(1000, 1, shape[1]))
    drawn = answers(1000, 4.0) - answers(1000, 3.6)
    # Each draw is a sample of its own; the mean of all of them is 30 times as sure as each.
    difference = drawn.mean()
    found = [paired_interval(each) for each in drawn]
    assert 0.93 <= np.mean([each.low <= difference <= each.high for each in found]) <= 0.97


def test_the_interval_over_examples_alone_and_over_seeds_alone_is_a_t_interval() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=12)
    expected = stats.ttest_1samp(values, 0)
    interval = expected.confidence_interval(0.95)
    over_examples, over_seeds = paired_interval(values[None]), paired_interval(values[:, None])
    for found in (over_examples, over_seeds):
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert found.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    assert over_examples.seed_error is None
    assert over_examples.example_error == pytest.approx(stats.sem(values))
    assert over_seeds.seed_error == pytest.approx(stats.sem(values))


def test_the_parts_of_the_variance_by_hand() -> None:
    # Means of the seeds 1 and 3, of the examples 1 and 3: no residual. Both variances are 2, divided by 2.
    found = paired_interval(np.array([[0, 2], [2, 4]]))
    assert (found.difference, found.seed_error, found.example_error) == (2.0, 1.0, 1.0)
    # One degree of freedom for each: t = 12.706, times the root of 1 + 1.
    assert found.high - 2 == pytest.approx(12.7062 * 2**0.5, abs=1e-3)


def test_seeds_of_equal_accuracy_on_few_examples_are_not_taken_for_certain() -> None:
    # Every seed gains one example of ten, each another one.
    found = paired_interval(np.eye(3, 10))
    assert found.difference == pytest.approx(0.1)
    assert found.high > 0.12


def test_no_difference_at_all_and_a_constant_one() -> None:
    assert paired_interval(np.zeros((3, 4))) == Interval(0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    assert paired_interval(np.ones((3, 4))) == Interval(1.0, None, None, None, 0.0, 0.0)
    assert paired_interval(np.ones((1, 1))) == Interval(1.0, None, None, None, None, 0.0)
    # Neither the mean of these nor their variance is exact in floats.
    found = paired_interval(np.full((3, 7), 0.1))
    assert (found.difference, found.low, found.p_value) == (pytest.approx(0.1), None, None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_has_no_interval(value: float) -> None:
    differences = np.zeros((2, 3))
    differences[1, 2] = value
    found = paired_interval(differences)
    assert (found.low, found.high, found.p_value) == (None, None, None)
    assert not np.isfinite(found.difference)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_has_no_interval(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"differences of {shape[0]} seeds and {shape[1]} examples"):
        paired_interval(np.zeros(shape))


def test_one_seed_gives_no_verdict_however_sure_the_examples_are() -> None:
    first, second = np.ones((1, 1000), dtype=bool), right_on(300, of=1000)[:1]
    pairs = compare([scores("second", second), scores("first", first), scores("same", first.copy())])
    assert pairs[0].mcnemar_p_adjusted < 1e-50
    assert pairs[0].p_adjusted is not None
    assert pairs[0].p_adjusted < 1e-40
    assert [pair.verdict for pair in pairs] == ["unresolved"] * 3
    assert [pair.reversed().verdict for pair in pairs] == ["unresolved"] * 3
    assert tie_groups(["first", "same", "second"], pairs) == {"first": 1, "same": 1, "second": 1}


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 5), (3, 11), (11, 3), (40, 60), (0, 300)])
def test_mcnemar_is_scipys_exact_binomial_test(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_an_example_counts_for_the_setting_that_is_right_with_more_seeds() -> None:
    first = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 1, 1]], dtype=bool)
    second = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=bool)
    (pair,) = compare([scores("second", second), scores("first", first)])
    assert (pair.first, pair.second) == ("first", "second")
    # 2 of 3 against 1; 1 against 2; 1 against 2; 3 against 3.
    assert (pair.first_right, pair.second_right, pair.mcnemar_p) == (1, 2, 1.0)


def test_identical_predictions_are_a_tie_and_chance_is_worse() -> None:
    generator = np.random.default_rng(0)
    good = generator.random((3, 500)) < 0.95
    pairs = compare(
        [scores("good", good), scores("same", good.copy()), scores("broken", generator.random((3, 500)) < 0.1)]
    )
    verdicts = {(pair.first, pair.second): pair.verdict for pair in pairs}
    assert verdicts == {("same", "good"): "tie", ("broken", "good"): "worse", ("broken", "same"): "worse"}
    tie = pairs[0]
    assert tie.accuracy_difference == tie.log_loss_difference == Interval(0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    assert (tie.p_adjusted, tie.mcnemar_p, tie.first_right, tie.num_seeds_needed) == (1.0, 1.0, 0, 2)
    assert pairs[1].accuracy < 0.2
    assert pairs[1].log_loss_difference.difference == pytest.approx(-0.5 * pairs[1].accuracy_difference.difference)


def test_the_verdict_needs_both_tests() -> None:
    # Two seeds gain 300 examples and the third loses 400: sure of the examples, not of other seeds.
    first, second = right_on(600, of=1000), right_on(300, of=1000)
    first[2], second[2] = right_on(200, of=1000)[0], right_on(600, of=1000)[0]
    (pair,) = compare([scores("second", second), scores("first", first)])
    assert (pair.first_right, pair.second_right) == (300, 100)
    assert pair.mcnemar_p < 1e-20
    assert pair.p_adjusted is not None
    assert pair.p_adjusted > 0.5
    assert pair.verdict == "tie"
    # All three seeds gain the same two examples of a thousand: certain of seeds, too few of examples.
    (pair,) = compare([scores("second", right_on(900, of=1000)), scores("first", right_on(902, of=1000))])
    assert pair.mcnemar_p == 0.5
    assert pair.verdict == "tie"


def test_holms_correction_is_over_all_pairs() -> None:
    settings = [scores(name, right_on(count)) for name, count in (("a", 50), ("b", 60), ("c", 60))]
    pairs = compare(settings)
    assert [(pair.first, pair.second) for pair in pairs] == [("b", "a"), ("c", "a"), ("c", "b")]
    assert [pair.mcnemar_p for pair in pairs] == pytest.approx([2 / 1024, 2 / 1024, 1.0])
    assert [pair.mcnemar_p_adjusted for pair in pairs] == pytest.approx([6 / 1024, 6 / 1024, 1.0])
    ratios = [(pair.p_adjusted or 0) / (pair.accuracy_difference.p_value or 1) for pair in pairs]
    assert ratios == pytest.approx([3, 3, 1])
    assert [pair.verdict for pair in pairs] == ["better", "better", "tie"]
    assert compare(settings[:1]) == []


def test_pairs_are_compared_on_their_common_seeds() -> None:
    one = scores("one", np.array([[1, 1], [0, 0], [1, 0]], dtype=bool), seeds=(7, 3, 5))
    two = scores("two", np.array([[0, 1], [1, 0]], dtype=bool), seeds=(3, 7))
    alone = scores("alone", np.ones((1, 2), dtype=bool), seeds=(9,))
    (pair,) = compare([one, two, alone])
    # Seed 3: 0, 1 against 0, 0; seed 7: 1, 0 against 1, 1.
    assert (pair.first, pair.second, pair.num_seeds, pair.num_examples) == ("two", "one", 2, 2)
    assert (pair.accuracy, pair.accuracy_difference.difference, pair.log_loss) == (0.5, 0.0, 0.25)


def test_a_reversed_comparison_is_that_of_the_settings_in_the_other_order() -> None:
    generator = np.random.default_rng(0)
    one, two = scores("one", generator.random((3, 400)) < 0.9), scores("two", generator.random((3, 400)) < 0.6)
    (pair,), (other) = compare([one, two]), compare([two, one])[0].reversed()
    assert pair.verdict == "worse"
    assert replace(other, accuracy=pair.accuracy, log_loss=pair.log_loss) == pair
    assert (other.accuracy, other.log_loss) == pytest.approx((pair.accuracy, pair.log_loss))


def test_the_number_of_seeds_that_resolve_a_tenth_of_a_point() -> None:
    def needed(seed_error: float | None, example_error: float) -> int | None:
        interval = Interval(0.0, 0.0, 0.0, 1.0, seed_error, example_error)
        return seeds_needed(interval, num_seeds=5, num_examples=10_000)

    # Seeds alone: t(n - 1) * 0.001 * sqrt(5 / n) is 0.00103 with 21 and 0.00099 with 22.
    assert needed(0.001, 0.0) == 22
    assert stats.t.ppf(0.975, 20) * (5 / 21) ** 0.5 == pytest.approx(1.018, abs=1e-3)
    assert stats.t.ppf(0.975, 21) * (5 / 22) ** 0.5 == pytest.approx(0.991, abs=1e-3)
    # Examples alone leave 1.96 * 0.0006.
    assert needed(0.001, 0.0006) is None
    assert needed(None, 0.0001) is None
    assert needed(0.0, 0.0) == 2


def judged(first: str, second: str, verdict: str) -> Comparison:
    (pair,) = compare([scores(second, right_on(1)), scores(first, right_on(1))])
    return replace(pair, verdict=verdict)


def test_groups_of_ties_have_the_place_of_their_best() -> None:
    pairs = [judged("a", "b", "tie"), judged("c", "a", "worse"), judged("b", "c", "tie")]
    assert tie_groups(["a", "b", "c"], pairs) == {"a": 1, "b": 1, "c": 3}
    # d ties with the leader of the first group although c, with a higher mean, does not.
    pairs += [judged("d", "a", "tie"), judged("d", "c", "worse")]
    assert tie_groups(["a", "b", "c", "d"], pairs) == {"a": 1, "b": 1, "c": 3, "d": 1}
    assert tie_groups(["a"], []) == {"a": 1}


def test_the_bias_of_choosing_the_better_of_two_by_hand() -> None:
    # Resampled means differ in half of the resamples: by 0.5 from the mean, widened by sqrt(2).
    assert selection_bias(np.eye(2)) == pytest.approx(0.25 * 2**0.5, abs=0.02)
    # A setting that always wins is not chosen by luck.
    assert selection_bias(np.array([[0.9, 0.92, 0.91], [0.5, 0.52, 0.51]])) == pytest.approx(0.0, abs=1e-3)
    assert selection_bias(np.ones((1, 5))) is None
    assert selection_bias(np.ones((3, 1))) is None


def test_the_bias_of_choosing_among_equals_is_near_the_true_one() -> None:
    generator = np.random.default_rng(0)
    drawn = generator.normal(size=(200, 10, 5))
    truth = drawn.mean(axis=2).max(axis=1).mean()
    estimated = np.mean([selection_bias(values) for values in drawn])
    assert truth == pytest.approx(1.54 / 5**0.5, abs=0.05)
    # The sample's own spread hides a part of it.
    assert 0.4 * truth < estimated < truth


def test_validation_chooses_and_test_accuracy_is_reported() -> None:
    def row(validation: float, loss: float, test: float) -> dict[str, float]:
        return {"best_val_accuracy": validation, "best_val_loss": loss, "accuracy": test}

    groups = {
        "best on test": {0: row(0.90, 0.3, 0.99), 1: row(0.90, 0.3, 0.99)},
        "higher loss": {0: row(0.95, 0.3, 0.93), 1: row(0.95, 0.3, 0.93)},
        "chosen": {0: row(0.94, 0.2, 0.91), 1: row(0.96, 0.2, 0.93)},
    }
    found = select(groups)
    assert (found.setting, found.num_settings, found.num_seeds) == ("chosen", 3, 2)
    assert (found.val_accuracy, found.test_accuracy, found.optimism) == pytest.approx((0.95, 0.92, 0.03))
    assert found.selection_bias is not None
    assert found.selection_bias > 0
    assert select({"one": {0: row(0.9, 0.1, 0.8)}}).selection_bias is None
