"""Growing grids on simulated runs: how often they are wrong, how many runs they take, how long they take."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from mnist_ray.analysis.blocks import Scores
from mnist_ray.analysis.estimates import BETTER, MARGIN, WORSE
from mnist_ray.grids.growth import LOOKS, Growth
from mnist_ray.jobs.grow import Cell, grow
from mnist_ray.jobs.looks_document import Basis, document_of, looks_in
from tests.support.simulated_grid import SimulatedRuns
from tests.support.simulated_scores import simulated

LONG = [pytest.mark.series, pytest.mark.timeout(3600)]
UNTIL_SETTLED = Growth(LOOKS, MARGIN, settles=True)


@dataclass
class Outcome:
    """Whether any look had a wrong word, whether the best setting is out, and the share of the 12 seeds' runs."""

    has_wrong_word: bool
    has_lost_the_best: bool
    share_of_runs: float


def settle(
    generator: np.random.Generator, points: NDArray[np.float64], num_examples: int, spread: list[float]
) -> Outcome:
    correct = simulated(
        generator, (points / 100).tolist(), num_seeds=LOOKS[-1], num_examples=num_examples, seed_spread=spread
    )
    runs, has_wrong_word = SimulatedRuns(correct), False
    look = None
    for look, pairs in grow(runs, UNTIL_SETTLED, ()):
        assert pairs is not None
        verdicts, places = pairs.accuracy.verdicts(), np.array(look.compared)
        apart = points[places[pairs.firsts]] - points[places[pairs.seconds]]
        wrong = ((verdicts == BETTER) & (apart <= 0)) | ((verdicts == WORSE) & (apart >= 0))
        has_wrong_word |= bool(wrong.any())
    assert look is not None
    is_lost = not look.is_in[points == points.max()].any()
    return Outcome(has_wrong_word, is_lost, len(runs.trained) / correct[..., 0].size)


def null(num_settings: int) -> NDArray[np.float64]:
    return np.zeros(num_settings)


def mix(num_settings: int) -> NDArray[np.float64]:
    """Settings 0, 0.2, 0.5, 1 and 2 points better."""
    return np.resize([0.0, 0.2, 0.5, 1.0, 2.0], num_settings)


def outcomes(points: NDArray[np.float64], num_draws: int, *, num_examples: int, spreads: list[float]) -> list[Outcome]:
    generator = np.random.default_rng(14)
    spread = np.resize(spreads, len(points)).tolist()
    return [settle(generator, points, num_examples, spread) for _ in range(num_draws)]


@pytest.mark.parametrize("spreads", [[0.15], [0.05, 0.3]], ids=["equal spreads", "unequal spreads"])
@pytest.mark.parametrize("num_draws", [8, pytest.param(400, marks=LONG)])
def test_words_on_equal_settings_stay_rare_over_all_looks(num_draws: int, spreads: list[float]) -> None:
    drawn = outcomes(null(8), num_draws, num_examples=6_000, spreads=spreads)
    wrong = sum(outcome.has_wrong_word for outcome in drawn)
    # More than 2 of 8 would be 1 % likely at a true rate of 5 %.
    assert wrong <= max(0.08 * num_draws, 2)


@pytest.mark.parametrize(("num_settings", "num_draws"), [(10, 3), pytest.param(32, 40, marks=LONG)])
def test_settling_a_mix_takes_few_of_the_runs_and_keeps_the_best(num_settings: int, num_draws: int) -> None:
    drawn = outcomes(mix(num_settings), num_draws, num_examples=6_000, spreads=[0.15])
    assert np.mean([outcome.share_of_runs for outcome in drawn]) <= 0.6
    assert sum(outcome.has_lost_the_best or outcome.has_wrong_word for outcome in drawn) <= max(0.08 * num_draws, 1)


def hard(num_settings: int = 6, num_examples: int = 2_000) -> NDArray[np.bool_]:
    """Settings close to each other, which several looks don't settle."""
    points = np.linspace(0, 1.2, num_settings) / 100
    return simulated(np.random.default_rng(3), points.tolist(), num_seeds=12, num_examples=num_examples)


def test_only_open_settings_get_more_seeds_and_the_others_stay_out() -> None:
    runs = SimulatedRuns(hard())
    looks = [look for look, _ in grow(runs, UNTIL_SETTLED, ())]
    assert [look.num_seeds for look in looks] == list(LOOKS)
    for before, after in pairwise(looks):
        assert list(after.compared) == before.open
        assert not (after.is_in & ~before.is_in).any()
        assert (after.is_settled | ~before.is_settled).all()
    assert len({len(look.compared) for look in looks}) > 1
    # A setting has the seeds of the last look that compared it.
    last = {place: look.num_seeds for look in looks for place in look.compared}
    assert runs.kept == last
    assert sorted(runs.trained) == sorted((place, seed) for place, count in last.items() for seed in range(count))


@pytest.mark.parametrize("num_looks", [1, 2, 3])
@pytest.mark.parametrize("are_stored", [True, False], ids=["stored", "not stored"])
def test_an_interruption_between_looks_changes_nothing(num_looks: int, are_stored: bool) -> None:
    whole = SimulatedRuns(hard())
    basis = Basis(MARGIN, list(range(12)), [str(place) for place in range(6)])
    expected = document_of([look for look, _ in grow(whole, UNTIL_SETTLED, ())], basis)
    runs = SimulatedRuns(hard())
    first = [look for look, _ in islice(grow(runs, UNTIL_SETTLED, ()), num_looks)]
    stored = json.loads(json.dumps(document_of(first, basis)))
    taken = looks_in(stored, basis) if are_stored else []
    rest = [look for look, _ in grow(runs, UNTIL_SETTLED, taken)]
    assert document_of([*taken, *rest], basis) == expected
    assert sorted(runs.trained) == sorted(whole.trained)


def test_looks_count_only_for_the_same_margin_seeds_and_settings() -> None:
    basis = Basis(MARGIN, [0, 1, 2], ["a", "b", "c"])
    (look, _) = next(grow(SimulatedRuns(hard(3)), Growth((2, 3), MARGIN, settles=True), ()))
    document = document_of([look], basis)
    assert len(looks_in(document, basis)) == 1
    for other in (replace(basis, margin=0.01), replace(basis, seeds=[0, 1]), replace(basis, settings=["a", "b"])):
        assert looks_in(document, other) == []
    assert looks_in(None, basis) == []


@pytest.mark.parametrize("settles", [True, False], ids=["until settled", "all seeds"])
@pytest.mark.parametrize("case", range(20))
def test_a_budget_is_kept_and_ends_with_complete_settings(case: int, settles: bool) -> None:
    generator = np.random.default_rng(case)
    num_settings = int(generator.integers(2, 20))
    run_seconds = generator.uniform(1, 10, num_settings).tolist()
    # From about one seed of all settings to more than all seeds.
    budget = float(generator.uniform(0.6, 15)) * sum(run_seconds) / 2
    points = generator.choice([0.0, 0.5, 2.0], num_settings) / 100
    correct = simulated(generator, points.tolist(), num_seeds=12, num_examples=500)
    runs = SimulatedRuns(correct, run_seconds=run_seconds, budget_s=budget, overhead=2.0)
    looks = LOOKS if settles else (12,)
    taken = [look for look, _ in grow(runs, replace(UNTIL_SETTLED, looks=looks, settles=settles, deadline=budget), ())]
    assert runs.clock <= budget
    # Each setting has a whole number of first seeds, the rest of the trained runs was cut off by the clock.
    assert all((place, seed) in runs.trained for place, count in runs.kept.items() for seed in range(count))
    most = max(runs.kept.values())
    if most > 1:
        assert sum(count == most for count in runs.kept.values()) > 1
        assert taken[-1].num_seeds == most
    # One more seed of the settings that have the most would not have fitted.
    if most < 12 and not (settles and taken and not taken[-1].open):
        one_more = 2.0 + sum(run_seconds[place] for place, count in runs.kept.items() if count == most) / 2
        assert one_more > 0.9 * (budget - runs.clock)


def test_without_time_for_one_more_seed_of_all_the_settings_behind_are_left_out() -> None:
    correct = simulated(np.random.default_rng(5), [0.0, 0.05, 0.0, 0.05], num_seeds=12, num_examples=1_000)
    # Two seeds of four runs, and then two more runs.
    runs = SimulatedRuns(correct, budget_s=10.6, at_once=1)
    looks = [look for look, _ in grow(runs, Growth((12,), MARGIN, settles=False, deadline=10.6), ())]
    assert [(look.num_seeds, look.compared) for look in looks] == [(2, (0, 1, 2, 3)), (3, (1, 3))]
    assert runs.kept == {0: 2, 1: 3, 2: 2, 3: 3}


@pytest.mark.parametrize("settles", [True, False])
def test_settings_left_out_at_the_last_look_get_their_seeds_later(settles: bool) -> None:
    correct = simulated(np.random.default_rng(5), [0.0, 0.01, 0.0, 0.01], num_seeds=3, num_examples=1_000)
    runs = SimulatedRuns(correct, budget_s=10.6, at_once=1)
    growth = Growth((3,), MARGIN, settles=settles, deadline=10.6)
    taken = [look for look, _ in grow(runs, growth, ())]
    assert (taken[-1].num_seeds, len(taken[-1].compared)) == (3, 2)
    runs.add_time(1.2)
    assert list(grow(runs, growth, taken)) == []
    assert sorted(runs.kept.values()) == [2, 3, 3, 3]
    runs.add_time(100)
    assert list(grow(runs, growth, taken)) == []
    assert set(runs.kept.values()) == {3}


def test_a_setting_that_always_diverges_can_not_be_the_best() -> None:
    class Diverging(SimulatedRuns):
        def scores(self, place: int, num_seeds: int) -> Scores | None:
            return None if place == 2 else super().scores(place, num_seeds)

    runs = Diverging(hard())
    look, _ = next(grow(runs, UNTIL_SETTLED, ()))
    assert not look.is_in[2]
    assert 2 not in look.compared
    assert len(runs.trained) == 18


def test_one_setting_gets_the_seeds_of_the_first_look() -> None:
    runs = SimulatedRuns(hard(1))
    assert [(look.num_seeds, pairs) for look, pairs in grow(runs, UNTIL_SETTLED, ())] == [(3, None)]
    assert len(runs.trained) == 3


class Optimistic(SimulatedRuns):
    """Runs that take longer than they are expected to, so that the time is up in the middle of a round."""

    def seconds(self, cells: Sequence[Cell]) -> float | None:
        seconds = super().seconds(cells)
        return None if seconds is None else seconds / 2


@pytest.mark.parametrize("settles", [True, False], ids=["until settled", "all seeds"])
@pytest.mark.parametrize(
    ("done_before", "budget", "expected"),
    [
        # Two seeds of all six settings, and a third of two of them.
        ([], 14.5, dict.fromkeys(range(6), 2)),
        # The others don't get their first seed in time.
        ([(place, seed) for place in range(3) for seed in range(2)], 1.5, dict.fromkeys(range(3), 2)),
        ([(0, 0), (0, 1), (2, 0)], 0.5, {0: 1, 2: 1}),
    ],
    ids=["all have two seeds", "three settings have two seeds", "one setting has two seeds"],
)
def test_when_the_time_is_up_before_the_first_look_as_many_settings_as_can_be_compared_count(
    done_before: list[Cell], budget: float, expected: dict[int, int], settles: bool
) -> None:
    runs = Optimistic(hard(), budget_s=budget, at_once=1)
    runs.trained = list(done_before)
    growth = Growth(LOOKS if settles else (12,), MARGIN, settles, budget)
    looks = [(look.num_seeds, look.compared) for look, _ in grow(runs, growth, ())]
    assert runs.kept == expected
    assert looks == ([(2, tuple(expected))] if max(expected.values()) > 1 else [])
