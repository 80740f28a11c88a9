"""The sentences that a report begins with."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mnist_ray.analysis.blocks import Scores, make_blocks
from mnist_ray.analysis.comparisons import compare
from mnist_ray.analysis.effects import Axes, Effect, Term
from mnist_ray.analysis.estimates import Estimate
from mnist_ray.config.settings import Range
from mnist_ray.config.variants import variant_config
from mnist_ray.report.answer import answer
from mnist_ray.report.comparison_report import ComparisonReport
from mnist_ray.report.grid_report import GridReport
from mnist_ray.report.setting_names import group_settings
from mnist_ray.results.columns import config_columns

AXES = Axes({"batch_norm": [False, True], "dropout": [0.0, 0.3]})
TRUE = Term("batch_norm", "true", "false")


def estimate(difference: float, half: float, verdict: str, *, needed: int | None = 7, seeds: int = 3) -> Estimate:
    return Estimate(difference, difference - half, difference + half, 0.01, 1e-6, 1e-6, seeds, needed, verdict, 0.005)


def effect(term: Term, of_accuracy: Estimate, metric: str = "accuracy") -> Effect:
    return Effect(metric, "factorial", term, of_accuracy, 4)


def sentences(
    effects: Sequence[Effect] = (), *, num_seeds: int = 2, best: Sequence[bool] = (True,) * 4, axes: Axes = AXES,
    runs: Sequence[dict[str, Any]] | None = None, seconds_per_seed: float | None = None, num_examples: int = 50,
    more_right: int = 0,
) -> list[str]:  # fmt: skip
    """The answer for a grid of batch norm x dropout, or for other runs.

    Args:
      more_right: examples that the last setting alone predicts correctly.
    """
    cells = runs or [{"batch_norm": norm, "dropout": rate} for norm in (False, True) for rate in (0.0, 0.3)]
    rows = []
    for place, cell in enumerate(cells):
        for seed in range(num_seeds):
            columns = config_columns([variant_config("baseline", {"seed": seed, **cell})])
            rows.append({"run": f"{place}-{seed}", **{name: values[0] for name, values in columns.items()}})
    groups = group_settings(rows)
    correct = np.tile(np.arange(num_examples) % 5 > 0, (num_seeds, 1))
    last = correct.copy()
    last[:, np.flatnonzero(~correct[0])[:more_right]] = True
    answers = [correct] * (len(groups) - 1) + [last]
    scores = [
        Scores(label, tuple(runs), right, right.astype(np.float32))
        for (label, runs), right in zip(groups.items(), answers, strict=True)
    ]
    pairs = compare(make_blocks(scores)) if len(scores) > 1 else None
    settings = [{"setting": label, "may_be_best": is_best} for label, is_best in zip(groups, best, strict=True)]
    report = ComparisonReport(num_examples, settings, pairs, 6, None, 0, None, None, 0, None)
    return answer(report, GridReport("g", list(effects), axes, seconds_per_seed), groups)


def test_what_helps_and_what_costs_come_first() -> None:
    dropout = effect(Term("dropout", "0.3", "0"), estimate(-0.015, 0.013, "worse"))
    norm = effect(TRUE, estimate(0.024, 0.0155, "better"))
    assert sentences([dropout, norm])[:2] == [
        "Batch norm helps: +2.4 points (+0.9 to +4.0).",
        "Dropout 0.3 costs 1.5 points (0.2 to 2.8).",
    ]
    assert sentences([effect(TRUE, estimate(0.003, 0.001, "better"))])[0] == (
        "Batch norm helps: +0.30 points (+0.20 to +0.40), less than the margin."
    )
    against = effect(TRUE, estimate(0.0357, 0.01, "worse"), "log_loss")
    assert sentences([norm, against])[0] == (
        "Batch norm helps: +2.4 points (+0.9 to +4.0); its log loss is worse (+0.036 nats)."
    )
    without = effect(Term("batch_norm", "false", "true"), estimate(-0.02, 0.01, "worse"))
    assert sentences([without])[0] == "No batch norm costs 2.0 points (1.0 to 3.0)."


def test_the_effect_of_a_range_is_that_of_its_ends() -> None:
    axes = Axes({"batch_norm": [False, True]}, {"learning_rate": Range(kind="loguniform", low=1e-4, high=1e-2)})
    rate = effect(Term("learning_rate", "0.01", "0.0001"), estimate(0.03, 0.01, "better"))
    assert sentences([rate], axes=axes)[0] == "Learning rate 0.01 against 0.0001 helps: +3.0 points (+2.0 to +4.0)."


def test_what_is_not_seen_says_what_would_show_it() -> None:
    decays = [
        effect(Term("weight_decay", text, "0"), estimate(0.001, half, "unresolved", needed=needed))
        for text, half, needed in (("1e-06", 0.006, 5), ("0.0001", 0.005, 9))
    ]
    assert sentences(decays)[0] == (
        "Weight decay: nothing seen, and less than 0.70 points either way; 9 seeds would resolve 0.5 points."
    )
    assert sentences(decays, seconds_per_seed=40)[0].endswith(
        "; 9 seeds (4 minutes more for one worker) would resolve 0.5 points."
    )
    assert "; 9 seeds (2 hours more for one worker) would" in sentences(decays, seconds_per_seed=1200)[0]
    never = replace(decays[0], estimate=estimate(0.02, 0.03, "unresolved", needed=None))
    assert sentences([never, decays[1]])[0] == (
        "Weight decay: nothing seen, and less than 5.0 points either way; "
        "50 examples are too few to resolve 0.5 points."
    )
    # The interval is narrow enough, but lies across the margin.
    narrow = replace(decays[0], estimate=estimate(0.003, 0.004, "unresolved", needed=2))
    decided = "24 seeds would resolve this if the difference stays as it is."
    assert sentences([narrow])[0] == f"Weight decay: nothing seen, and less than 0.70 points either way; {decided}"
    small = replace(decays[1], estimate=estimate(0.001, 0.002, "equivalent"))
    assert sentences([narrow, small])[:2] == [
        f"Weight decay 1e-6: nothing seen, and less than 0.70 points either way; {decided}",
        "Weight decay 0.0001: no difference that matters, less than 0.5 points either way.",
    ]


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (
            (True,) * 4,
            "May be best: dropout 0, no bn; bn; dropout 0.3; bn, dropout 0.3. Simplest of them: dropout 0, no bn.",
        ),
        ((False, True, False, False), "Best: bn."),
        ((False, False, True, True), "May be best: dropout 0.3; bn, dropout 0.3. Simplest of them: dropout 0.3."),
    ],
)
def test_few_settings_that_may_be_the_best_are_named(best: tuple[bool, ...], said: str) -> None:
    assert sentences(best=best)[-1] == said


def test_many_settings_that_may_be_the_best_are_described_by_what_they_share() -> None:
    rates = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    axes = Axes({"batch_norm": [False, True], "dropout": rates})
    runs = [{"batch_norm": norm, "dropout": rate} for norm in (False, True) for rate in rates]

    def said(*places: int) -> str:
        labels = sentences(runs=runs, best=[place in places for place in range(12)], axes=axes)
        return labels[-1]

    assert said(*range(12)).startswith("May be best: any of the 12 settings. Simplest of them: dropout 0, no bn.")
    # In the order of their names: without batch norm, then with it, for each rate.
    assert said(*range(1, 12, 2)) == "May be best: the 6 settings with batch norm. Simplest of them: bn."
    assert said(3, 5, 7, 9, 11) == (
        "May be best: 5 of the 12 settings, all with batch norm. Simplest of them: bn, dropout 0.1."
    )
    assert said(0, 3, 5, 7, 9) == "May be best: 5 of the 12 settings. Simplest of them: dropout 0, no bn."


def test_one_seed_resolves_nothing_and_one_setting_has_no_answer() -> None:
    assert sentences(num_seeds=1) == [
        "One seed says nothing about other seeds, so nothing is resolved: use --seeds 5 or more."
    ]
    assert sentences(runs=[{"dropout": 0.3}], best=[True]) == []


def test_without_effects_settings_are_compared_with_the_first() -> None:
    said = sentences()
    assert said[0] == (
        "bn; dropout 0.3; bn, dropout 0.3 against dropout 0, no bn: nothing seen, and less than "
        f"{said[0].split('less than ')[1].split(' points')[0]} points either way; "
        "50 examples are too few to resolve 0.5 points."
    )
    # A search that follows results chose its settings by them.
    helps = effect(TRUE, estimate(0.024, 0.0155, "better"))
    assert sentences([helps], axes=replace(AXES, follows_results=True)) == said


def test_a_sure_difference_between_settings_that_is_small_says_so() -> None:
    runs = [{"dropout": 0.0}, {"dropout": 0.3}]
    (said, _) = sentences(runs=runs, best=(True, True), num_examples=10_000, more_right=25)
    assert re.fullmatch(
        r"dropout 0.3 is better than dropout 0: \+0.25 points \(\+0.\d\d to \+0.\d\d\), less than the margin.", said
    )
    (said, _) = sentences(runs=runs, best=(True, True), num_examples=10_000, more_right=100)
    assert re.fullmatch(r"dropout 0.3 is better than dropout 0: \+1.0 points \(\+0.8 to \+1.2\).", said)
