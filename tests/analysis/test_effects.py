from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mnist_ray.analysis.blocks import Blocks, make_blocks
from mnist_ray.analysis.effects import (
    ADDITIVE,
    FACTORIAL,
    Axes,
    Effect,
    StudentT,
    Term,
    blocks_of_effects,
    effects,
    level_text,
)
from mnist_ray.analysis.estimates import BETTER, MARGIN, UNRESOLVED, WORSE
from mnist_ray.config.settings import Range
from tests.support import moderated_max_t as reference
from tests.support.simulated_scores import scores_of, simulated

AXES: dict[str, tuple[Any, ...]] = {
    "dropout": (0.0, 0.3, 0.5),
    "batch_norm": (False, True),
    "hidden_sizes": ((8,), (16, 8)),
}
TWO: dict[str, tuple[Any, ...]] = {"dropout": (0.0, 0.5), "batch_norm": (False, True)}
Rows = Sequence[Mapping[str, Any]]


def rows_of(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, levels, strict=True)) for levels in product(*axes.values())]


def answers(gains: Sequence[float], *, num_seeds: int = 3, num_examples: int = 500, seed: int = 0) -> NDArray[np.bool_]:
    return simulated(np.random.default_rng(seed), gains, num_seeds=num_seeds, num_examples=num_examples)


def effects_of(correct: NDArray[np.bool_], rows: Rows, axes: Axes) -> list[Effect]:
    return effects(make_blocks(scores_of(correct)), rows, axes, margin=MARGIN)


def named(found: list[Effect], metric: str = "accuracy") -> dict[tuple[Any, ...], Effect]:
    return {
        (effect.term.axis, effect.term.level, effect.term.second_axis, effect.term.second_level)[
            : 2 + 2 * is_pair
        ]: effect
        for effect in found
        if effect.metric == metric
        for is_pair in [effect.term.kind == "interaction"]
    }


def assert_as_the_reference(found: Sequence[Effect], correct: NDArray[np.bool_], weights: NDArray[np.float64]) -> None:
    """The largest of the family's |t| are other draws."""
    expected = reference.compare(correct, weights)
    for place, effect in enumerate(found):
        estimate = effect.estimate
        assert estimate.difference == pytest.approx(expected.d[place], abs=1e-12)
        assert estimate.seed_variance == pytest.approx(expected.v_seed[place], rel=1e-6)
        assert estimate.example_variance == pytest.approx(expected.v_example[place], rel=1e-6)
        assert estimate.high is not None
        assert estimate.high - estimate.difference == pytest.approx(expected.crit * expected.se[place], rel=0.04)
        assert estimate.p_value == pytest.approx(expected.p[place], abs=0.02)
        assert (effect.model, effect.num_settings, estimate.num_seeds) == (FACTORIAL, len(correct), correct.shape[1])


def test_effects_of_a_complete_grid_are_differences_of_averages() -> None:
    rows = rows_of(AXES)
    correct = answers([-0.1 * bool(row["dropout"]) - 0.1 * row["batch_norm"] for row in rows])
    all_found = effects_of(correct, rows, Axes(AXES))
    found, means = named(all_found), correct.mean(axis=(1, 2)).reshape(3, 2, 2)
    expected: dict[tuple[str, ...], float] = {
        ("dropout", "0.3"): (means[1] - means[0]).mean(),
        ("dropout", "0.5"): (means[2] - means[0]).mean(),
        ("batch_norm", "true"): (means[:, 1] - means[:, 0]).mean(),
        ("hidden_sizes", "[16, 8]"): (means[:, :, 1] - means[:, :, 0]).mean(),
    }
    for level, text in ((1, "0.3"), (2, "0.5")):
        of_norm, of_sizes = means[[0, level]].mean(axis=2), means[[0, level]].mean(axis=1)
        expected["dropout", text, "batch_norm", "true"] = of_norm[1, 1] - of_norm[0, 1] - of_norm[1, 0] + of_norm[0, 0]
        both = of_sizes[1, 1] - of_sizes[0, 1] - of_sizes[1, 0] + of_sizes[0, 0]
        expected["dropout", text, "hidden_sizes", "[16, 8]"] = both
    both = means.mean(axis=0)
    expected["batch_norm", "true", "hidden_sizes", "[16, 8]"] = both[1, 1] - both[0, 1] - both[1, 0] + both[0, 0]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].estimate.difference == pytest.approx(value, abs=1e-12)
        assert named(all_found, "log_loss")[key].estimate.difference == pytest.approx(-1.9 * value, abs=1e-7)
    assert found["dropout", "0.5"].term == Term("dropout", "0.5", "0")
    term = found["dropout", "0.5", "batch_norm", "true"].term
    assert (term.reference_level, term.second_reference_level, term.kind) == ("0", "false", "interaction")


def test_main_effects_are_one_family_and_interactions_another() -> None:
    axes = {"dropout": AXES["dropout"], "batch_norm": AXES["batch_norm"]}
    rows = rows_of(axes)
    correct = answers([0.0] * 6)
    found = list(named(effects_of(correct, rows, Axes(axes))).values())
    cells = np.eye(6).reshape(3, 2, 6)
    main = [(cells[1] - cells[0]).mean(0), (cells[2] - cells[0]).mean(0), (cells[:, 1] - cells[:, 0]).mean(0)]
    both = [cells[level, 1] - cells[0, 1] - cells[level, 0] + cells[0, 0] for level in (1, 2)]
    assert_as_the_reference(found[:3], correct, np.array(main))
    assert_as_the_reference(found[3:], correct, np.array(both))


def test_a_true_effect_is_found_and_another_is_not() -> None:
    rows = rows_of(TWO)
    correct = answers([-0.1 * row["batch_norm"] for row in rows], num_examples=5_000)
    found = effects_of(correct, rows, Axes(TWO))
    verdicts = {key: effect.estimate.verdict for key, effect in named(found).items()}
    assert verdicts[("batch_norm", "true")] == WORSE
    assert verdicts[("dropout", "0.5")] not in (BETTER, WORSE)
    assert named(found, "log_loss")[("batch_norm", "true")].estimate.verdict == WORSE
    # From the other level it is the opposite.
    turned = named(effects_of(correct, rows, Axes({**TWO, "batch_norm": (True, False)})))
    assert turned[("batch_norm", "false")].estimate.verdict == BETTER


def test_one_run_of_a_further_seed_leaves_the_effects_as_they_were() -> None:
    rows = rows_of(TWO)
    correct = answers([0.0] * 4, num_seeds=4)
    settings = scores_of(correct[:, :3])
    without = effects(make_blocks(settings), rows, Axes(TWO), margin=MARGIN)
    settings[2] = scores_of(correct)[2]
    blocks = make_blocks(settings)
    assert blocks_of_effects(blocks, rows, Axes(TWO)) is blocks
    assert effects(blocks, rows, Axes(TWO), margin=MARGIN) == without
    assert {effect.model for effect in without} == {FACTORIAL}
    assert blocks.seeds_left_out == [3]


GRID: dict[str, tuple[Any, ...]] = {
    "batch_norm": (False, True),
    "dropout": (0.0, 0.2, 0.3, 0.5),
    "weight_decay": (0.0, 1e-4),
    "label_smoothing": (0.0, 0.1),
}


def unequal(num_seeds: Sequence[int]) -> tuple[Blocks, Blocks]:
    """Settings of GRID with the first so many seeds: the blocks of all pairs, and those of the effects."""
    rows = rows_of(GRID)
    correct = answers([0.02 * row["batch_norm"] for row in rows], num_seeds=max(num_seeds), num_examples=200)
    settings = [scores_of(correct[:, :count])[place] for place, count in enumerate(num_seeds)]
    blocks = make_blocks(settings)
    return blocks, blocks_of_effects(blocks, rows, Axes(GRID))


def test_seeds_for_some_of_the_settings_only_leave_all_effects_on_the_common_seeds() -> None:
    # All with batch norm have twelve seeds, the others three.
    together, of_effects = unequal([3] * 16 + [12] * 16)
    assert (len(together.settings_left_out), len(together.seeds)) == (16, 12)
    assert (of_effects.settings_left_out, of_effects.seeds) == ([], (0, 1, 2))
    found = effects(of_effects, rows_of(GRID), Axes(GRID), margin=MARGIN)
    with_three = effects(unequal([3] * 32)[0], rows_of(GRID), Axes(GRID), margin=MARGIN)
    assert {(each.model, each.estimate.num_seeds, each.num_settings) for each in found} == {(FACTORIAL, 3, 32)}
    assert [each.term for each in found] == [each.term for each in with_three]
    assert {each.term.kind for each in found} == {"main", "interaction"}


def test_one_missing_run_costs_the_effects_a_seed_and_no_setting() -> None:
    together, of_effects = unequal([5] * 31 + [4])
    assert together.settings_left_out == ["31"]
    assert (of_effects.settings_left_out, of_effects.seeds_left_out) == ([], [4])
    found = effects(of_effects, rows_of(GRID), Axes(GRID), margin=MARGIN)
    assert {(each.model, each.estimate.num_seeds) for each in found} == {(FACTORIAL, 4)}


@pytest.mark.parametrize(
    "num_seeds",
    [
        # One setting has a single seed, or so few that more than half of the seeds would go with the others.
        [5] * 31 + [1],
        [5] * 31 + [2],
        # Some of each level have many seeds.
        ([12] * 3 + [3]) * 8,
        # No setting is left out.
        [5] * 32,
        [5] * 31 + [6],
    ],
)
def test_otherwise_effects_are_those_of_the_settings_that_all_pairs_have(num_seeds: list[int]) -> None:
    together, of_effects = unequal(num_seeds)
    assert of_effects is together
    found = effects(of_effects, rows_of(GRID), Axes(GRID), margin=MARGIN)
    assert {each.term.axis for each in found} == set(GRID)
    assert min(each.estimate.num_seeds for each in found) >= 5


@pytest.mark.parametrize("rows", [rows_of(AXES), rows_of(AXES)[:-2]])
def test_one_seed_gives_effects_with_intervals_over_examples_only(rows: Rows) -> None:
    correct = answers([-0.5 * row["batch_norm"] for row in rows], num_seeds=1)
    found = effects_of(correct, rows, Axes(AXES))
    assert ("batch_norm", "true") in named(found)
    for effect in found:
        estimate = effect.estimate
        assert (estimate.p_value, estimate.seed_variance, estimate.verdict) == (None, None, UNRESOLVED)
        assert (estimate.low is None, estimate.num_seeds) == (False, 1)


def test_equal_sums_of_right_answers_are_no_effect() -> None:
    # 1 + 2 = 3 + 0 and 3 + 4 = 1 + 6 of 10 examples with either seed, whose means differ by a rounding.
    counts = np.array([[[1, 3], [2, 4]], [[3, 1], [0, 6]]])
    assert (counts[1] / 10 - counts[0] / 10).sum(axis=0).any()
    correct = np.arange(10) < counts.reshape(4, 2, 1)
    rows = rows_of(TWO)
    estimate = named(effects_of(correct, rows, Axes(TWO)))[("dropout", "0.5")].estimate
    assert estimate.difference == pytest.approx(0, abs=1e-15)
    assert (estimate.p_value, estimate.verdict) == (1.0, UNRESOLVED)


@pytest.mark.parametrize("seed", range(5))
def test_settings_with_the_same_losses_have_no_effect_on_the_log_loss(seed: int) -> None:
    # Dropout changes the places of three settings, whose sums are rounded differently in another order.
    losses = np.random.default_rng(seed).exponential(size=(3, 3, 500)).astype(np.float32)
    places = [0, 1, 2, 2, 0, 1]
    settings = scores_of(answers([0.0] * 6))
    settings = [replace(scores, loss=losses[place]) for scores, place in zip(settings, places, strict=True)]
    axes = {"dropout": (0.0, 0.5), "epochs": (1, 2, 3)}
    found = named(effects(make_blocks(settings), rows_of(axes), Axes(axes), margin=MARGIN), "log_loss")
    estimate = found[("dropout", "0.5")].estimate
    assert [estimate.low, estimate.high, estimate.difference] == pytest.approx([0, 0, 0], abs=1e-12)
    assert (estimate.p_value, estimate.verdict) == (1.0, UNRESOLVED)
    assert found[("dropout", "0.5", "epochs", "3")].estimate.difference != 0


def test_a_diverged_run_leaves_accuracies_complete_and_losses_additive() -> None:
    axes = {"dropout": AXES["dropout"], "batch_norm": AXES["batch_norm"]}
    rows = rows_of(axes)
    settings = scores_of(answers([0.0] * 6))
    settings[5].loss[0, 0] = np.nan
    found = effects(make_blocks(settings), rows, Axes(axes), margin=MARGIN)
    assert {(effect.metric, effect.model) for effect in found} == {("accuracy", FACTORIAL), ("log_loss", ADDITIVE)}


def assert_additive(found: Sequence[Effect], correct: NDArray[np.bool_], columns: NDArray[np.float64]) -> float:
    """Compares with least squares on columns [settings, terms], the intercept left out; returns tau^2."""
    Z = np.column_stack([np.ones(len(columns)), columns])
    m, Ws, We, W = reference.mean_squares(correct)
    k, S, N = correct.shape
    phi0, _, d0 = reference.prior(Ws, W, S)
    weights, n, df = np.linalg.solve(Z.T @ Z, Z.T), S - 1, k - Z.shape[1]
    fitted, _, rank, _ = np.linalg.lstsq(Z, m, rcond=None)
    assert rank == Z.shape[1]
    eigenvalues, vectors = np.linalg.eigh(We - W)
    noise = (phi0 * W + vectors @ np.diag(np.maximum(eigenvalues, 0)) @ vectors.T) / (S * N)
    Q = np.eye(k) - Z @ weights
    tau2 = max(0.0, (((m - Z @ fitted) ** 2).sum() - np.trace(Q @ noise)) / df)
    assert len(found) == columns.shape[1]
    for effect, c, coefficient in zip(found, weights[1:], fitted[1:], strict=True):
        w = c @ W @ c
        common = phi0 if np.isinf(d0) else (d0 * phi0 + n * (c @ Ws @ c) / w) / (d0 + n)
        v_seed = max(1, common) * w / (S * N)
        v_example = max(0, c @ We @ c - w) / (S * N) + c @ c / 2 / N**2 + tau2 * (c @ c)
        estimate, error = effect.estimate, (v_seed + v_example) ** 0.5
        critical = stats.t.isf(0.025 / len(found), df)
        p_value = min(1, 2 * len(found) * stats.t.sf(abs(coefficient) / error, df))
        assert effect.model == ADDITIVE
        assert estimate.difference == pytest.approx(coefficient, abs=1e-12)
        assert (estimate.seed_variance, estimate.example_variance) == pytest.approx((v_seed, v_example), rel=1e-6)
        assert estimate.p_value == pytest.approx(p_value, rel=1e-6)
        assert (estimate.low or 0) == pytest.approx(max(coefficient - critical * error, -np.abs(c).sum() / 2), rel=1e-6)
        assert (estimate.low is not None and estimate.low > 0) == (coefficient > 0 and p_value < 0.05)
    return float(tau2)


def test_an_incomplete_grid_gives_the_coefficients_of_an_additive_model() -> None:
    rows = rows_of(AXES)[:-2]
    correct = answers([-0.2 * row["batch_norm"] for row in rows])
    found = list(named(effects_of(correct, rows, Axes(AXES))).values())
    levels = ("dropout", 0.3), ("dropout", 0.5), ("batch_norm", True), ("hidden_sizes", (16, 8))
    columns = np.array([[float(row[axis] == level) for axis, level in levels] for row in rows])
    assert_additive(found, correct, columns)
    assert [effect.term.level for effect in found] == ["0.3", "0.5", "true", "[16, 8]"]
    assert {effect.term.kind for effect in found} == {"main"}


def test_what_the_model_leaves_unexplained_widens_its_intervals() -> None:
    rows = rows_of(AXES)[:-1]
    columns = np.array(
        [
            [row["dropout"] == 0.3, row["dropout"] == 0.5, row["batch_norm"], row["hidden_sizes"] != (8,)]
            for row in rows
        ],
        dtype=float,
    )
    spread = np.random.default_rng(0).normal(size=len(rows)) * 0.1 - 0.2
    additive, other = answers([0.0] * 11), answers(spread.tolist())
    without = assert_additive(effects_of(additive, rows, Axes(AXES))[:4], additive, columns)
    with_spread = assert_additive(effects_of(other, rows, Axes(AXES))[:4], other, columns)
    assert without < 1e-4
    assert 0.001 < with_spread < 0.03


RANGES = {
    "learning_rate": Range(kind="loguniform", low=1e-4, high=1e-1),
    "dropout": Range(kind="uniform", low=0.0, high=0.6),
}


def searched() -> tuple[NDArray[np.bool_], list[dict[str, Any]], NDArray[np.float64]]:
    """Answers, settings and columns of a random search; the learning rate costs 30 points over its range."""
    generator = np.random.default_rng(0)
    rates, dropouts = generator.random((2, 12))
    norms = np.arange(12) % 2 == 0
    rows: list[dict[str, Any]] = [
        {"learning_rate": 1e-4 * 1000**rate, "dropout": 0.6 * dropout, "batch_norm": bool(norm)}
        for rate, dropout, norm in zip(rates, dropouts, norms, strict=True)
    ]
    return answers((-0.3 * rates).tolist()), rows, np.column_stack([norms, rates, dropouts]).astype(np.float64)


def test_an_effect_of_a_range_is_that_from_its_low_to_its_high_end() -> None:
    correct, rows, columns = searched()
    found = list(named(effects_of(correct, rows, Axes({"batch_norm": (False, True)}, RANGES))).values())
    assert_additive(found, correct, columns)
    assert [effect.term for effect in found] == [
        Term("batch_norm", "true", "false"),
        Term("learning_rate", "0.1", "0.0001"),
        Term("dropout", "0.6", "0"),
    ]
    assert found[1].estimate.difference == pytest.approx(-0.3, abs=0.05)
    assert [effect.estimate.verdict for effect in found] == [UNRESOLVED, WORSE, UNRESOLVED]


def test_a_search_that_drew_every_combination_of_levels_is_additive_still() -> None:
    axes = {"dropout": AXES["dropout"], "batch_norm": AXES["batch_norm"]}
    rates = np.random.default_rng(0).random(6)
    rows = [{**row, "learning_rate": 1e-4 * 1000**rate} for row, rate in zip(rows_of(axes), rates, strict=True)]
    correct = answers((-0.3 * rates).tolist())
    found = named(effects_of(correct, rows, Axes(axes, {"learning_rate": RANGES["learning_rate"]})))
    levels = np.array([[row["dropout"] == 0.3, row["dropout"] == 0.5, row["batch_norm"]] for row in rows])
    assert_additive(list(found.values()), correct, np.column_stack([levels, rates]))


def test_settings_that_were_chosen_by_results_have_coefficients_only() -> None:
    correct, rows, _ = searched()
    axes = Axes({"batch_norm": (False, True)}, RANGES)
    random = effects_of(correct, rows, axes)
    chosen = effects_of(correct, rows, replace(axes, follows_results=True))
    assert [(each.metric, each.term) for each in chosen] == [(each.metric, each.term) for each in random]
    for one, other in zip(chosen, random, strict=True):
        assert one.estimate.difference == pytest.approx(other.estimate.difference, abs=1e-12)
        assert (one.estimate.low, one.estimate.p_value, one.estimate.verdict) == (None, None, UNRESOLVED)
        assert one.estimate.num_seeds == 3


def test_axes_that_vary_together_are_left_out_and_others_stay() -> None:
    rows = [
        {
            "dropout": 0.5 * (place % 2),
            "batch_norm": place % 2 == 1,
            "hidden_sizes": AXES["hidden_sizes"][place // 2 % 2],
        }
        for place in range(4)
    ]
    correct = answers([0.0] * 4)
    # Complete in no two of the three axes' levels: 4 of 12 combinations.
    found = effects_of(correct, rows, Axes(AXES))
    assert list(named(found)) == [("hidden_sizes", "[16, 8]")]
    assert found[0].model == ADDITIVE


def test_nothing_that_varies_and_no_setting_to_spare_give_no_effects() -> None:
    correct, rows = answers([0.0] * 4), rows_of(TWO)
    assert effects_of(correct[:2], rows[:1] * 2, Axes(TWO)) == []
    assert effects_of(correct[:1], rows[:1], Axes(TWO)) == []
    # Three settings and three coefficients.
    assert effects_of(correct[:3], rows[:3], Axes(TWO)) == []


def test_levels_that_no_setting_has_and_axes_of_one_level_are_no_trouble() -> None:
    axes = {"gradient_clip_norm": (None, 1, 5), "epochs": (5,)}
    rows = [{"gradient_clip_norm": clip, "epochs": 5} for clip in (1.0, None)]
    found = named(effects_of(answers([0.0, -0.1]), rows, Axes(axes)))
    assert list(found) == [("gradient_clip_norm", "1")]
    assert found["gradient_clip_norm", "1"].term.reference_level == "null"
    assert found["gradient_clip_norm", "1"].estimate.difference > 0


def test_levels_are_equal_if_their_texts_are() -> None:
    assert level_text(1) == level_text(1.0) == "1"
    assert level_text((16, 8)) == level_text([16, 8]) == "[16, 8]"
    assert [level_text(level) for level in (True, None, "sgd", 1e-4)] == ["true", "null", '"sgd"', "0.0001"]


def test_students_t_at_bonferronis_level() -> None:
    one, three = StudentT(df=5, num_contrasts=1), StudentT(df=5, num_contrasts=3)
    assert one.critical(0.95) == pytest.approx(2.5706, abs=1e-4)
    assert three.critical(0.85) == pytest.approx(one.critical(0.95))
    assert one.p_values(np.array([2.5706])) == pytest.approx([0.05], abs=1e-5)
    assert three.p_values(np.array([2.5706, 0.5])) == pytest.approx([0.15, 1.0], abs=1e-4)
