"""How often the words are wrong, and how often they come, by simulation; the bounds leave room for chance."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mnist_ray.analysis.blocks import Blocks, make_blocks
from mnist_ray.analysis.comparisons import compare
from mnist_ray.analysis.effects import Axes, effects
from mnist_ray.analysis.estimates import BETTER, MARGIN, WORSE, make_block
from tests.support.simulated_scores import real_seeds, scores_of, simulated

LONG = [pytest.mark.series, pytest.mark.timeout(3600)]


def accuracies(correct: NDArray[np.bool_]) -> Blocks:
    return replace(make_blocks(scores_of(correct)), loss=None)


def signs(correct: NDArray[np.bool_]) -> NDArray[np.int64]:
    """1 for a pair whose first setting is better, -1 if it is worse, otherwise 0."""
    verdicts = compare(accuracies(correct)).accuracy.verdicts()
    return np.where(verdicts == BETTER, 1, np.where(verdicts == WORSE, -1, 0))


EQUAL_SETTINGS: dict[str, tuple[int, int, int, tuple[float, ...], float]] = {
    # settings, seeds, examples, spreads of seeds in turn, largest share of draws with a wrong word
    "many examples": (4, 3, 10_000, (0.15,), 0.085),
    "unequal spreads": (8, 3, 10_000, (0.05, 0.3), 0.085),
    "few examples": (4, 5, 355, (0.15,), 0.08),
}


def share_of_wrong_families(case: str, num_draws: int) -> float:
    num_settings, num_seeds, num_examples, spreads, _ = EQUAL_SETTINGS[case]
    generator = np.random.default_rng(14)
    seed_spread = np.resize(spreads, num_settings).tolist()
    wrong = 0
    for _ in range(num_draws):
        correct = simulated(
            generator, [0.0] * num_settings, num_seeds=num_seeds, num_examples=num_examples, seed_spread=seed_spread
        )
        wrong += bool(signs(correct).any())
    return wrong / num_draws


@pytest.mark.parametrize("case", [pytest.param(case, marks=LONG) for case in EQUAL_SETTINGS])
def test_words_on_equal_settings_are_as_rare_as_the_confidence_says(case: str) -> None:
    assert share_of_wrong_families(case, 400) <= EQUAL_SETTINGS[case][-1]


@pytest.mark.parametrize("case", EQUAL_SETTINGS)
def test_words_on_equal_settings_are_rare_in_a_few_draws(case: str) -> None:
    # More than 3 of 16 would be 1 % likely at a true rate of 5 %.
    assert share_of_wrong_families(case, 16) <= 3 / 16


def resolved_and_wrong(num_draws: int, num_settings: int) -> tuple[float, int]:
    """Settings 0, .2, .5, 1, 2 points better: the share of pairs 1 point apart with a word, draws with a wrong word."""
    generator = np.random.default_rng(14)
    points = np.resize([0.0, 0.2, 0.5, 1.0, 2.0], num_settings)
    seconds, firsts = np.triu_indices(num_settings, 1)
    apart = points[firsts] - points[seconds]
    resolved, wrong = [], 0
    for _ in range(num_draws):
        found = signs(simulated(generator, (points / 100).tolist(), num_seeds=3, num_examples=10_000))
        resolved.append((found[np.isclose(np.abs(apart), 1)] != 0).mean())
        wrong += bool(((found != 0) & (found != np.sign(apart))).any())
    return float(np.mean(resolved)), wrong


@pytest.mark.series
@pytest.mark.timeout(3600)
def test_a_point_is_resolved_among_32_settings_and_signs_are_right() -> None:
    resolved, wrong = resolved_and_wrong(20, 32)
    assert resolved >= 0.9
    assert wrong <= 3


def test_a_point_is_resolved_among_10_settings_and_signs_are_right() -> None:
    resolved, wrong = resolved_and_wrong(2, 10)
    assert resolved >= 0.9
    assert wrong <= 1


GRID: dict[str, tuple[Any, ...]] = {"batch_norm": (False, True), "dropout": (0.0, 0.2, 0.3, 0.5)}
ROWS = [{"batch_norm": norm, "dropout": rate} for norm in GRID["batch_norm"] for rate in GRID["dropout"]]


def share_of_wrong_main_effects(num_draws: int) -> float:
    generator = np.random.default_rng(14)
    wrong = 0
    for _ in range(num_draws):
        blocks = accuracies(simulated(generator, [0.0] * 8, num_seeds=3, num_examples=10_000))
        found = [effect for effect in effects(blocks, ROWS, Axes(GRID), margin=MARGIN) if effect.term.kind == "main"]
        assert len(found) == 4
        wrong += any(effect.estimate.is_decided for effect in found)
    return wrong / num_draws


@pytest.mark.series
@pytest.mark.timeout(3600)
def test_main_effects_of_equal_settings_are_as_rare_as_the_confidence_says() -> None:
    assert share_of_wrong_main_effects(200) <= 0.10


def test_main_effects_of_equal_settings_are_rare_in_a_few_draws() -> None:
    assert share_of_wrong_main_effects(8) <= 2 / 8


def test_copies_of_a_setting_count_as_fewer_degrees_of_freedom() -> None:
    correct = simulated(np.random.default_rng(14), [0.0] * 8, num_seeds=3, num_examples=10_000)
    places = np.arange(8)
    copies = correct[[0, 0, 0, 0, 4, 5, 6, 7]]
    distinct, copied = (make_block(places, values).prior.scale_df for values in (correct, copies))
    # 2 degrees of freedom for each of 7 differences. Copies leave 4 differences, which don't weigh the same.
    assert 13 < distinct <= 14
    assert copied < 8


def resolved_and_wrong_of_real_seeds(num_draws: int) -> tuple[float, int]:
    """The share of pairs with a word from 3 of the 20 seeds, and draws with a sign against that of all 20."""
    correct, generator = real_seeds(), np.random.default_rng(14)
    totals = correct.sum(axis=(1, 2))
    seconds, firsts = np.triu_indices(len(correct), 1)
    truth = np.sign(totals[firsts] - totals[seconds])
    found = np.array([signs(correct[:, generator.choice(20, 3, replace=False)]) for _ in range(num_draws)])
    return float((found != 0).mean()), int(((found != 0) & (found != truth)).any(axis=1).sum())


@pytest.mark.series
@pytest.mark.timeout(3600)
def test_three_real_seeds_resolve_half_the_pairs_with_the_signs_of_twenty() -> None:
    resolved, wrong = resolved_and_wrong_of_real_seeds(200)
    assert resolved >= 0.45
    assert wrong <= 0.03 * 200


def test_three_real_seeds_resolve_half_the_pairs_in_a_few_draws() -> None:
    resolved, wrong = resolved_and_wrong_of_real_seeds(8)
    assert resolved >= 0.4
    assert wrong <= 1
