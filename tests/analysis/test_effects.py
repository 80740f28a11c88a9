from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mnist_ray.analysis.effects import Effect, effects, holm, missing_runs, t_interval

AXES: dict[str, tuple[Any, ...]] = {
    "dropout": (0.0, 0.3, 0.5),
    "batch_norm": (False, True),
    "hidden_sizes": ((8,), (16, 8)),
}


def rows_of(values: np.ndarray, axes: dict[str, tuple[Any, ...]], num_examples: int = 2**40) -> list[dict[str, Any]]:
    """values[level of axis 1, ..., seed] as rows of a metrics table; the log loss is half the accuracy.

    So many examples by default that any value is an accuracy.
    """
    rows = []
    for place in np.ndindex(values.shape):
        settings = {name: levels[index] for (name, levels), index in zip(axes.items(), place, strict=False)}
        # Parquet gives tuples back as lists.
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        figures = {"num_examples": num_examples, "accuracy": values[place], "log_loss": values[place] / 2}
        rows.append({"run": str(place), **settings, "seed": 10 * place[-1], **figures})
    return rows


def named(found: list[Effect], metric: str = "accuracy") -> dict[tuple[Any, ...], Effect]:
    return {
        (effect.axis, effect.level, effect.second_axis, effect.second_level): effect
        for effect in found
        if effect.metric == metric
    }


def test_effects_of_a_balanced_grid_are_the_contrasts_of_a_linear_model() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(3, 2, 2, 4))
    found = named(effects(rows_of(values, AXES), AXES))
    # An independent computation: for each seed, least squares on treatment-coded factors, centred so that a main
    # effect is the average over the other factors.
    cells = list(product(range(3), range(2), range(2)))
    coding = [np.eye(3)[:, 1:] - 1 / 3, np.eye(2)[:, 1:] - 1 / 2, np.eye(2)[:, 1:] - 1 / 2]
    columns = {(0, level): [coding[0][cell[0], level - 1] for cell in cells] for level in (1, 2)}
    columns |= {(axis, 1): [coding[axis][cell[axis], 0] for cell in cells] for axis in (1, 2)}
    names = {0: "dropout", 1: "batch_norm", 2: "hidden_sizes"}
    text = {(0, 1): "0.3", (0, 2): "0.5", (1, 1): "true", (2, 1): "[16, 8]"}
    pairs = [(a, b) for a in columns for b in columns if a[0] < b[0]]
    design = np.array(
        [np.ones(len(cells)), *columns.values(), *(np.multiply(columns[a], columns[b]) for a, b in pairs)]
    )
    solved = np.linalg.lstsq(design.T, values.reshape(12, 4), rcond=None)[0]
    for position, key in enumerate(columns, start=1):
        effect = found[(names[key[0]], text[key], None, None)]
        _assert_paired(effect, solved[position])
    for position, (a, b) in enumerate(pairs, start=1 + len(columns)):
        _assert_paired(found[(names[a[0]], text[a], names[b[0]], text[b])], solved[position])
    assert len(found) == len(columns) + len(pairs)


def _assert_paired(effect: Effect, per_seed: np.ndarray) -> None:
    reference = stats.ttest_1samp(per_seed, 0)
    interval = reference.confidence_interval(0.95)
    assert effect.effect == pytest.approx(per_seed.mean(), abs=1e-12)
    assert (effect.effect_low, effect.effect_high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert effect.p_value == pytest.approx(reference.pvalue, abs=1e-12)
    assert effect.num_seeds == 4


def test_the_number_of_pairs_and_the_other_metric_are_there() -> None:
    values = np.zeros((3, 2, 2, 2))
    values[:, 1] += 0.25
    found = effects(rows_of(values, AXES), AXES)
    batch_norm = named(found)[("batch_norm", "true", None, None)]
    assert (batch_norm.effect, batch_norm.effect_low, batch_norm.p_value, batch_norm.num_pairs) == (0.25, None, None, 6)
    assert batch_norm.reference_level == "false"
    assert named(found, "log_loss")[("batch_norm", "true", None, None)].effect == 0.125
    interaction = named(found)[("dropout", "0.5", "batch_norm", "true")]
    assert (interaction.kind, interaction.effect, interaction.p_value, interaction.num_pairs) == (
        "interaction",
        0,
        1,
        2,
    )


def test_a_combination_with_a_missing_run_counts_for_no_seed() -> None:
    values = np.zeros((2, 3, 2))
    values[1] = [[1.0, 1.0], [2.0, 2.0], [6.0, 6.0]]
    axes = {"dropout": (0.0, 0.5), "epochs": (1, 2, 3)}
    rows = [row for row in rows_of(values, axes) if not (row["dropout"] == 0.5 and row["epochs"] == 3 and row["seed"])]
    effect = named(effects(rows, axes))[("dropout", "0.5", None, None)]
    # Not 3 for one seed and 1.5 for the other.
    assert (effect.effect, effect.num_pairs, effect.num_seeds) == (1.5, 2, 2)
    assert ("dropout", "0.5", "epochs", "3") not in named(effects(rows, axes))


def test_one_seed_gives_effects_without_intervals() -> None:
    effect = named(effects(rows_of(np.arange(2.0).reshape(2, 1), {"dropout": (0, 1)}), {"dropout": (0, 1)}))
    assert effect[("dropout", "1", None, None)] == Effect(
        "accuracy", "main", "dropout", "1", "0", None, None, None, 1.0, None, None, None, None, 1, 1
    )


def test_an_axis_of_one_level_and_levels_without_a_value_are_no_trouble() -> None:
    axes = {"gradient_clip_norm": (None, 1), "epochs": (5,)}
    rows = [
        {
            "run": f"r{clip}",
            "gradient_clip_norm": clip,
            "epochs": 5,
            "seed": 0,
            "num_examples": 4,
            "accuracy": value,
            "log_loss": 0.0,
        }
        for clip, value in ((None, 0.5), (1.0, 0.75))
    ]
    assert next((effect.level, effect.reference_level, effect.effect) for effect in effects(rows, axes)) == (
        "1",
        "null",
        0.25,
    )


def test_equal_sums_of_examples_are_equal_however_their_accuracies_are_rounded() -> None:
    axes = {"dropout": (0.0, 0.5), "batch_norm": (False, True)}
    # 1 + 2 = 3 + 0 and 3 + 4 = 1 + 6 of 10 examples: no effect of dropout with either seed. In floats the first sums
    # differ by a rounding, which once gave an interval without width beside zero.
    accuracies = np.array([[[1, 3], [2, 4]], [[3, 1], [0, 6]]]) / 10
    assert (accuracies[1] - accuracies[0]).sum(axis=0).any()
    effect = named(effects(rows_of(accuracies, axes, 10), axes))[("dropout", "0.5", None, None)]
    assert (effect.effect, effect.effect_low, effect.effect_high, effect.p_value) == (0.0, 0.0, 0.0, 1.0)
    # 2 examples of 60 more with each of three seeds: no spread, so nothing is known of it.
    counts = np.array([[[10, 3, 7], [17, 4, 9]], [[9, 2, 8], [20, 7, 10]]])
    effect = named(effects(rows_of(counts / 30, axes, 30), axes))[("dropout", "0.5", None, None)]
    assert (effect.effect, effect.effect_low, effect.p_value) == (2 / 60, None, None)


def test_identical_settings_have_no_effect_on_the_log_loss_either() -> None:
    values = np.array([[[0.1, 0.7], [0.2, 0.3]], [[0.2, 0.3], [0.1, 0.7]]]) / 3
    axes = {"dropout": (0.0, 0.5), "batch_norm": (False, True)}
    effect = named(effects(rows_of(values, axes), axes), "log_loss")[("dropout", "0.5", None, None)]
    assert (effect.effect, effect.effect_low, effect.effect_high, effect.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_of_two_runs_with_the_same_levels_and_seed_the_first_by_name_counts() -> None:
    axes = {"dropout": (0.0, 0.5)}
    rows = rows_of(np.array([[0.5, 0.5], [0.75, 0.75]]), axes)
    repeated = {**rows[-1], "run": "z", "accuracy": 0.0}
    assert effects([repeated, *rows], axes) == effects([*rows, repeated], axes) == effects(rows, axes)


def test_runs_that_are_missing_are_said() -> None:
    axes = {"dropout": (0.0, 0.5), "batch_norm": (False, True)}
    rows = rows_of(np.zeros((2, 2, 3)), axes)
    assert missing_runs(rows, axes) is None
    assert missing_runs([], {"dropout": (), "batch_norm": ()}) is None
    assert missing_runs(rows_of(np.zeros((1, 3)), {"dropout": (0.5,)}), {"dropout": (0.5,)}) is None
    # The third seed was interrupted after its first run.
    some = [row for row in rows if row["seed"] < 20 or (row["dropout"] == 0 and not row["batch_norm"])]
    assert effects(some, axes) == []
    assert missing_runs(some, axes) == ("3 of 4 settings lack a run of some seed and are left out (seed 20 has 1 of 4)")


def test_holm_multiplies_the_smallest_by_the_count_and_never_steps_down() -> None:
    # By hand: 0.01*4; 0.02*3 = 0.06; 0.03*2 = 0.06; 0.5*1.
    assert holm([0.03, 0.01, None, 0.5, 0.02]) == pytest.approx([0.06, 0.04, None, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_values_without_spread_say_nothing_of_their_uncertainty_unless_they_are_zero() -> None:
    assert t_interval(np.array([0.25, 0.25])) == (None, None, None)
    # Their mean is not 0.1 in floats.
    assert t_interval(np.full(3, 0.1)) == (None, None, None)
    assert t_interval(np.zeros(3)) == (0.0, 0.0, 1.0)
    assert t_interval(np.array([0.25])) == (None, None, None)


def test_the_interval_of_a_main_effect_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    axes = {"dropout": (0.0, 0.5), "batch_norm": (False, True)}
    covered = 0
    for _ in range(1000):
        # Seeds shift all runs alike, and each run has noise of its own.
        values = generator.normal(size=(1, 1, 4)) + 0.3 * generator.normal(size=(2, 2, 4))
        values[1] += 0.5
        effect = named(effects(rows_of(values, axes), axes))[("dropout", "0.5", None, None)]
        assert effect.effect_low is not None
        assert effect.effect_high is not None
        covered += effect.effect_low <= 0.5 <= effect.effect_high
    assert 0.93 <= covered / 1000 <= 0.97
