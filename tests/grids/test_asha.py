import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.grids.asha import Decision, Rungs


def reference(decisions: list[Decision], factor: int) -> list[bool]:
    """The rule, replayed naively: at each arrival, sort all that have come to the rung and look who is on top."""
    kept = []
    for index, arrival in enumerate(decisions):
        there = [other.val_loss for other in decisions[: index + 1] if other.epoch == arrival.epoch]
        best = sorted(there)[: math.ceil(len(there) / factor)]
        kept.append(arrival.val_loss <= max(best))
    return kept


def test_rungs_are_first_times_powers_of_the_factor() -> None:
    rungs = Rungs(first=2, factor=3)
    assert [epoch for epoch in range(1, 60) if rungs.is_rung(epoch)] == [2, 6, 18, 54]


def test_the_first_to_arrive_goes_on_and_later_ones_must_be_among_the_best() -> None:
    rungs = Rungs(first=1, factor=2)
    losses = [0.5, 0.6, 0.4, 0.45, 0.7, 0.4]
    # Of 1 the best 1, of 2 one, of 3 two, of 4 two, of 5 three, of 6 three.
    assert [rungs.judge(f"r{index}", 1, loss) for index, loss in enumerate(losses)] == [
        True,
        False,
        True,
        True,
        False,
        True,
    ]


def test_nothing_is_judged_between_rungs() -> None:
    rungs = Rungs(first=1, factor=3)
    assert rungs.judge("a", 1, 0.1)
    assert rungs.judge("b", 2, 9.9)
    assert [decision.run for decision in rungs.decisions] == ["a"]


def test_runs_from_before_an_interruption_count() -> None:
    rungs = Rungs(first=1, factor=2)
    rungs.remember(1, [0.1, 0.2])
    assert not rungs.judge("late", 1, 0.3)
    assert rungs.judge("good", 1, 0.05)


@given(
    st.lists(st.floats(0, 10).map(lambda loss: round(loss, 1)), min_size=1, max_size=60),
    st.integers(2, 5),
    st.randoms(use_true_random=False),
)
def test_no_run_is_stopped_that_the_rule_would_keep(losses: list[float], factor: int, order: random.Random) -> None:
    rungs = Rungs(first=1, factor=factor)
    waiting = [(f"r{index}", 1, loss) for index, loss in enumerate(losses)]
    while waiting:
        run, epoch, loss = waiting.pop(order.randrange(len(waiting)))
        if rungs.judge(run, epoch, loss) and epoch < factor**3:
            waiting.append((run, epoch * factor, loss * order.random()))
    assert [decision.goes_on for decision in rungs.decisions] == reference(rungs.decisions, factor)


@pytest.mark.parametrize("losses", [[0.5] * 7])
def test_equals_of_a_run_that_goes_on_go_on(losses: list[float]) -> None:
    rungs = Rungs(first=1, factor=3)
    assert all(rungs.judge(f"r{index}", 1, loss) for index, loss in enumerate(losses))
