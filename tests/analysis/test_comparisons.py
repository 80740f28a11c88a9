from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mnist_ray.analysis.blocks import Blocks, Scores, make_blocks
from mnist_ray.analysis.comparisons import Comparison, Comparisons, compare, compare_accuracies
from mnist_ray.analysis.estimates import BETTER, EQUIVALENT, UNRESOLVED, WORSE, Estimate
from tests.support import moderated_max_t as reference
from tests.support.simulated_scores import real_seeds, scores_of, simulated


def scores(label: str, correct: NDArray[np.bool_], *, seeds: tuple[int, ...] | None = None) -> Scores:
    """Runs whose loss is 0.5 on a wrong example and 0 on a right one."""
    loss = np.where(correct, 0.0, 0.5).astype(np.float32)
    return Scores(label, seeds or tuple(range(len(correct))), correct, loss)


def right_on(count: int, *, of: int = 100, num_seeds: int = 3, first: int = 0) -> NDArray[np.bool_]:
    """Every seed is right on the same examples, count of them from first on."""
    return np.tile((np.arange(of) >= first) & (np.arange(of) < first + count), (num_seeds, 1))


def compared(*settings: Scores, baseline: int | None = None) -> Comparisons:
    return compare(make_blocks(settings), baseline=baseline)


def answers(gains: list[float], *, num_seeds: int = 3, num_examples: int = 1_000, seed: int = 0) -> NDArray[np.bool_]:
    return simulated(np.random.default_rng(seed), gains, num_seeds=num_seeds, num_examples=num_examples)


def named(found: Comparisons) -> dict[tuple[str, str], Comparison]:
    return {(pair.first, pair.second): pair for pair in found.rows()}


def test_each_setting_is_compared_with_every_earlier_one() -> None:
    correct = answers([0.0, -0.3, -0.5, -0.1])
    found = compared(*scores_of(correct))
    assert list(named(found)) == [("1", "0"), ("2", "0"), ("3", "0"), ("2", "1"), ("3", "1"), ("3", "2")]
    expected = reference.compare(correct, reference.pair_contrasts(4))
    assert found.accuracy.difference == pytest.approx(expected.d)
    assert found.accuracy.low == pytest.approx(expected.low, rel=0.05, abs=0.01)
    assert found.accuracy.high == pytest.approx(expected.high, rel=0.05, abs=0.01)
    # Losses are 1.9 higher where answers are wrong; their intervals are as wide but for one example.
    assert found.log_loss.difference == pytest.approx(-1.9 * expected.d)
    assert found.log_loss.critical == pytest.approx(expected.crit, rel=0.05)
    words = [pair.log_loss.verdict for pair in found.rows()]
    assert words[:2] == [WORSE, WORSE]
    assert words[4] == BETTER


def test_identical_predictions_are_equivalent_and_chance_is_worse() -> None:
    generator = np.random.default_rng(0)
    good = generator.random((3, 3_000)) < 0.95
    broken = generator.random((3, 3_000)) < 0.1
    found = named(compared(scores("good", good), scores("same", good.copy()), scores("broken", broken)))
    assert {pair: each.accuracy.verdict for pair, each in found.items()} == {
        ("same", "good"): EQUIVALENT,
        ("broken", "good"): WORSE,
        ("broken", "same"): WORSE,
    }
    same, broken_pair = found["same", "good"], found["broken", "good"]
    assert (same.accuracy.difference, same.accuracy.p_value, same.mcnemar_p, same.first_right) == (0.0, 1.0, 1.0, 0)
    assert (same.accuracy.seed_variance, same.accuracy.num_seeds_needed) == (0.0, 2)
    assert (same.log_loss.low, same.log_loss.high, same.log_loss.verdict) == (0.0, 0.0, UNRESOLVED)
    assert broken_pair.log_loss.difference == pytest.approx(-0.5 * broken_pair.accuracy.difference)
    assert broken_pair.accuracy.is_decided


def test_a_word_needs_both_seeds_and_examples() -> None:
    # Two seeds gain 300 examples and the third loses 400: sure of the examples, not of other seeds.
    first, second = right_on(600, of=1000), right_on(300, of=1000)
    first[2], second[2] = right_on(200, of=1000)[0], right_on(600, of=1000)[0]
    (pair,) = compared(scores("second", second), scores("first", first)).rows()
    assert (pair.first_right, pair.second_right) == (300, 100)
    assert pair.mcnemar_p < 1e-20
    assert pair.accuracy.p_value is not None
    assert pair.accuracy.p_value > 0.5
    assert pair.accuracy.verdict == UNRESOLVED
    # All three seeds gain the same two examples of a thousand: sure of seeds, too few of examples.
    (pair,) = compared(scores("second", right_on(900, of=1000)), scores("first", right_on(902, of=1000))).rows()
    assert (pair.mcnemar_p, pair.accuracy.verdict) == (0.5, UNRESOLVED)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 5), (3, 11), (11, 3), (40, 60), (0, 300)])
def test_mcnemar_is_scipys_exact_binomial_test(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    settings = scores("b", right_on(second, of=400, first=first)), scores("a", right_on(first, of=400))
    (pair,) = compared(*settings).rows()
    assert (pair.first_right, pair.second_right) == (first, second)
    assert pair.mcnemar_p == pytest.approx(expected, rel=1e-9)


def test_an_example_counts_for_the_setting_that_is_right_with_more_seeds() -> None:
    first = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 1, 1]], dtype=bool)
    second = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=bool)
    # 2 of 3 against 1; 1 against 2; 1 against 2; 3 against 3.
    for settings in ([second, first], [second, second, first]):
        pair = compared(*(scores(str(place), each) for place, each in enumerate(settings))).rows()[len(settings) - 2]
        assert (pair.first_right, pair.second_right, pair.mcnemar_p) == (1, 2, 1.0)


def test_a_baseline_is_the_second_of_each_pair_and_widens_intervals_less() -> None:
    correct = answers([0.0] * 6)
    every, some = compared(*scores_of(correct)), compared(*scores_of(correct), baseline=2)
    assert list(named(some)) == [(str(place), "2") for place in (0, 1, 3, 4, 5)]
    assert some.accuracy.critical < every.accuracy.critical - 0.2
    contrasts = np.delete(np.eye(6), 2, axis=0) - np.eye(6)[2]
    assert some.accuracy.critical == pytest.approx(reference.compare(correct, contrasts).crit, rel=0.04)
    # Only the critical value differs from that of all pairs.
    for (first, second), pair in named(some).items():
        other = named(every).get((first, second)) or named(every)[second, first].reversed()
        assert pair.accuracy.seed_variance == pytest.approx(other.accuracy.seed_variance)
        assert pair.accuracy.difference == pytest.approx(other.accuracy.difference)
    assert some.may_be_best is None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_settings_may_be_best_unless_another_is_clearly_better(seed: int) -> None:
    correct = answers([0.0, 0.0, -0.02, -0.005, -0.1, 0.001], num_examples=2_000, seed=seed)
    found = compared(*scores_of(correct))
    contrasts = reference.pair_contrasts(6)
    expected = reference.compare(correct, contrasts)
    t = expected.d / expected.se
    behind = [max(0, (-t[contrasts[:, i] > 0]).max(initial=0), t[contrasts[:, i] < 0].max(initial=0)) for i in range(6)]
    # Monte Carlo error must not decide: none is near its limit.
    assert (np.abs(behind - expected.best) > 0.05 * expected.best).all()
    assert found.may_be_best is not None
    assert found.may_be_best.tolist() == (behind <= expected.best).tolist()
    assert not found.may_be_best[4]
    assert found.may_be_best[correct.mean(axis=(1, 2)).argmax()]


def test_losses_are_told_apart_where_all_answers_are_equal() -> None:
    correct = answers([0.0])[0]
    settings = [scores("sure", correct), scores("unsure", correct)]
    noise = np.random.default_rng(0).random(correct.shape, dtype=np.float32)
    settings[1] = replace(settings[1], loss=settings[0].loss + 0.1 * noise)
    (pair,) = compared(*settings).rows()
    assert pair.log_loss.low is not None
    assert pair.log_loss.low > 0
    assert (pair.accuracy.is_decided, pair.log_loss.verdict) == (False, WORSE)


def test_of_real_seeds_only_batch_norm_may_be_best() -> None:
    found = compared(*scores_of(real_seeds()))
    # Dropout 0 with batch norm is 0.6 points above dropout 0.2 with it, with 20 seeds.
    assert found.may_be_best is not None
    assert found.may_be_best.tolist() == [False, True] + [False] * 6


def test_one_seed_gives_no_verdict_and_rules_out_no_best() -> None:
    first, second = np.ones((1, 1000), dtype=bool), right_on(300, of=1000, num_seeds=1)
    found = compared(scores("second", second), scores("first", first), scores("same", first.copy()))
    rows = found.rows()
    assert rows[0].mcnemar_p < 1e-50
    assert rows[0].accuracy.low is not None
    assert rows[0].accuracy.low > 0.5
    assert {pair.accuracy.verdict for pair in rows} == {UNRESOLVED}
    assert {pair.log_loss.verdict for pair in rows} == {UNRESOLVED}
    assert {pair.accuracy.p_value for pair in rows} == {None}
    assert found.may_be_best is not None
    assert found.may_be_best.all()


def test_one_setting_and_settings_without_a_common_seed_have_no_pairs() -> None:
    alone = compared(scores("one", right_on(5)))
    assert (len(alone), alone.rows(), alone.unpaired) == (0, [], [])
    apart = compared(scores("one", right_on(5)), scores("two", right_on(6, num_seeds=2), seeds=(7, 8)))
    assert (len(apart), apart.unpaired) == (0, [("two", "one")])
    for found in (alone, apart):
        assert found.may_be_best is not None
        assert found.may_be_best.all()


def test_pairs_outside_the_rectangle_use_their_own_seeds_and_its_prior() -> None:
    correct = answers([0.0, -0.05, -0.2, -0.1], num_seeds=5)
    settings = scores_of(correct, seeds=[range(5)] * 4)
    # The last setting has two of the five seeds, and one of its own.
    settings[3] = scores("3", np.vstack([correct[3, [1, 4]], correct[3, :1]]), seeds=(1, 4, 17))
    blocks = make_blocks(settings)
    assert (blocks.settings_left_out, blocks.seeds_left_out) == (["3"], [17])
    found = compare(blocks)
    inside = reference.compare(correct[:3], reference.pair_contrasts(3))
    assert found.accuracy.critical == pytest.approx(inside.crit, rel=0.04)
    pairs = named(found)
    assert [pair.accuracy.num_seeds for pair in pairs.values()] == [5, 5, 2, 5, 2, 2]
    for other in range(3):
        m, Ws, We, W = reference.mean_squares(correct[[other, 3]][:, [1, 4]])
        c = np.array([-1, 1])
        w = c @ W @ c
        phi = max(1, (inside.d0 * inside.phi0 + c @ Ws @ c / w) / (inside.d0 + 1))
        pair = pairs["3", str(other)].accuracy
        assert pair.difference == pytest.approx(c @ m)
        assert pair.seed_variance == pytest.approx(phi * w / 2_000)
        assert pair.example_variance == pytest.approx(max(0, c @ We @ c - w) / 2_000 + 1e-6)
        half_width = found.accuracy.critical * ((pair.seed_variance or 0) + (pair.example_variance or 0)) ** 0.5
        assert (pair.high or 0) - pair.difference == pytest.approx(half_width)
    more = (correct[3][[1, 4]].sum(axis=0) > correct[0][[1, 4]].sum(axis=0)).sum()
    assert pairs["3", "0"].first_right == more


def test_a_pair_with_more_seeds_than_the_rectangle_of_one_is_judged_on_one() -> None:
    correct = answers([0.0, -0.5, 0.0, 0.0], num_seeds=4)
    seeds = (0, 1, 2), (1, 2), (0, 3), (1, 3)
    settings = [scores(str(place), correct[place, list(each)], seeds=each) for place, each in enumerate(seeds)]
    assert make_blocks(settings).seeds == (3,)
    pair = named(compared(*settings))["1", "0"].accuracy
    assert pair.difference == pytest.approx(correct[1, 1].mean() - correct[0, 1].mean())
    assert (pair.num_seeds, pair.seed_variance, pair.verdict) == (1, None, UNRESOLVED)


def test_a_setting_outside_the_rectangle_is_ruled_out_too() -> None:
    correct = answers([0.0, 0.0, 0.0, -0.5], num_seeds=5)
    settings = scores_of(correct)
    settings[3] = scores("3", correct[3, :2])
    found = compared(*settings)
    assert found.may_be_best is not None
    assert found.may_be_best.tolist() == [True, True, True, False]
    # One that is a little worse is not.
    settings[3] = scores("3", answers([-0.004], num_seeds=2)[0])
    found = compared(*settings)
    assert found.accuracy.difference[[2, 4, 5]].max() < 0
    assert found.may_be_best is not None
    assert found.may_be_best.all()
    settings[3] = scores("3", correct[3, :2])
    # With one common seed nothing is known of other seeds.
    settings[3] = scores("3", correct[3, :1])
    found = compared(*settings)
    assert found.may_be_best is not None
    assert found.may_be_best.all()
    assert named(found)["3", "0"].accuracy.verdict == UNRESOLVED


def test_a_baseline_outside_the_rectangle_is_judged_like_all_pairs() -> None:
    correct = answers([0.0, 0.0, 0.0, -0.5], num_seeds=5)
    settings = scores_of(correct)
    settings[3] = scores("3", correct[3, :2])
    every, some = compared(*settings), compared(*settings, baseline=3)
    assert list(named(some)) == [("0", "3"), ("1", "3"), ("2", "3")]
    for (first, second), pair in named(some).items():
        assert pair.accuracy.verdict == BETTER
        opposite = named(every)[second, first].accuracy.reversed()
        for name in ("difference", "low", "high", "p_value"):
            assert getattr(pair.accuracy, name) == pytest.approx(getattr(opposite, name))


@pytest.mark.parametrize("values", [(np.nan,), (np.inf,), (np.inf, np.inf), (np.nan, np.inf, np.inf)])
def test_settings_whose_loss_is_not_finite_have_accuracies_and_no_losses(values: tuple[float, ...]) -> None:
    settings = scores_of(answers([0.0, -0.1, -0.2, -0.1]))
    for place, value in enumerate(values):
        settings[place].loss[1, 2] = value
    found = compared(*settings)
    for pair in found.rows():
        assert pair.accuracy.low is not None
        is_finite = int(pair.second) >= len(values)
        assert (pair.log_loss.low is not None) == (pair.log_loss.p_value is not None) == is_finite
        assert np.isfinite(pair.log_loss.difference) == is_finite
    assert found.may_be_best is not None


def test_no_examples_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 seeds and 0 examples: nothing to compare"):
        make_blocks([scores(name, np.zeros((2, 0), dtype=bool)) for name in "ab"])


@pytest.mark.parametrize("num_examples", [1, 2])
@pytest.mark.parametrize("num_seeds", [1, 2])
@pytest.mark.parametrize("num_settings", [2, 3])
def test_the_smallest_data_resolve_nothing(num_settings: int, num_seeds: int, num_examples: int) -> None:
    for bits in range(1, 60, 7):
        correct = np.random.default_rng(bits).random((num_settings, num_seeds, num_examples)) < 0.5
        for pair in compared(*scores_of(correct)).rows():
            assert pair.accuracy.verdict == UNRESOLVED
            assert pair.accuracy.low is not None
            assert pair.accuracy.high is not None
            assert -1 <= pair.accuracy.low <= pair.accuracy.difference <= pair.accuracy.high <= 1


def test_300_settings_are_compared_in_blocks() -> None:
    generator = np.random.default_rng(0)
    correct = generator.random((300, 2, 50)) < np.where(np.arange(300) < 299, 0.8, 0.05)[:, None, None]
    found = compared(*scores_of(correct))
    assert len(found) == 300 * 299 // 2
    assert found.may_be_best is not None
    assert not found.may_be_best[299]
    assert found.may_be_best.sum() > 200


def test_a_reversed_comparison_is_that_of_the_settings_in_the_other_order() -> None:
    one, two = scores_of(answers([0.0, -0.3]))
    (pair,), (other,) = compared(one, two).rows(), compared(two, one).rows()
    opposite = other.reversed()
    assert (pair.accuracy.verdict, other.accuracy.verdict) == (WORSE, BETTER)
    for field in ("first", "second", "first_right", "second_right", "mcnemar_p"):
        assert getattr(opposite, field) == getattr(pair, field)
    assert_alike(opposite.accuracy, pair.accuracy)
    assert_alike(opposite.log_loss, pair.log_loss)


def assert_alike(found: Estimate, expected: Estimate) -> None:
    """The draws of the critical value differ with the order of the settings."""
    assert (found.verdict, found.num_seeds, found.margin) == (expected.verdict, expected.num_seeds, expected.margin)
    for name in ("difference", "low", "high", "seed_variance", "example_variance"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=0.05)


def test_a_lower_level_gives_narrower_intervals() -> None:
    blocks: Blocks = make_blocks(scores_of(answers([0.0] * 4)))
    criticals = [compare_accuracies(blocks, level=level).accuracy.critical for level in (0.8, 0.95, 0.99)]
    assert all(lower < higher for lower, higher in pairwise(criticals))
    assert compare(blocks).accuracy.critical == criticals[1]
    without = compare(replace(blocks, loss=None)).log_loss
    assert np.isnan(without.low).all()


def test_a_pair_is_compared_on_all_seeds_that_both_settings_have() -> None:
    # As after looks: some settings have got 8 seeds and others 5 or 3 of them.
    correct = answers([0.0, 0.01, 0.02, 0.0, 0.01], num_seeds=8)
    counts = [8, 8, 8, 5, 3]
    settings = [scores.take(range(count)) for scores, count in zip(scores_of(correct), counts, strict=True)]
    made = compare(make_blocks(settings))
    for pair, first, second in zip(made.rows(), made.firsts.tolist(), made.seconds.tolist(), strict=True):
        count = min(counts[first], counts[second])
        assert pair.accuracy.num_seeds == pair.log_loss.num_seeds == count
        expected = correct[first, :count].mean() - correct[second, :count].mean()
        assert pair.accuracy.difference == pytest.approx(expected)
    # Pairs with the block's seeds are estimated as in the block alone.
    block = compare(make_blocks([scores.take(range(5)) for scores in settings[:4]]))
    inside = {(pair.first, pair.second): pair for pair in block.rows()}
    (same,) = (pair for pair in made.rows() if (pair.first, pair.second) == ("3", "0"))
    assert same.accuracy.seed_variance == pytest.approx(inside["3", "0"].accuracy.seed_variance)
