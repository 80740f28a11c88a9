import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from mnist_ray.analysis.blocks import make_blocks
from mnist_ray.analysis.rectangle import rectangle
from tests.support.simulated_scores import scores_of, simulated


def chosen(*rows: str) -> tuple[list[int], list[int]]:
    """Rows are settings, 1 for a run of each seed."""
    settings, seeds = rectangle(np.array([[run == "1" for run in row] for row in rows]))
    return settings.tolist(), seeds.tolist()


@pytest.mark.parametrize(
    ("rows", "settings", "seeds"),
    [
        (("11", "11"), [0, 1], [0, 1]),
        # One extra run of a fourth seed: the seed goes.
        (("1111", "1110", "1110", "1110"), [0, 1, 2, 3], [0, 1, 2]),
        # One run of a setting in a large grid is missing: a seed lacks 1 of 4, the setting 1 of 3.
        (("111", "111", "110", "111"), [0, 1, 3], [0, 1, 2]),
        # The same, with more seeds than settings.
        (("11111", "11111", "11110"), [0, 1, 2], [0, 1, 2, 3]),
        # Shares are equal: the setting goes.
        (("111", "111", "110"), [0, 1], [0, 1, 2]),
        # Two settings stay.
        (("111", "110"), [0, 1], [0, 1]),
        # Two settings lack a quarter, their seed a third of the settings.
        (("1110", "1111", "1110", "1111", "1111", "1111"), [0, 1, 2, 3, 4, 5], [0, 1, 2]),
        # Settings with one seed go before those with more lose theirs.
        (("11", "11", "10", "10", "10", "10"), [0, 1], [0, 1]),
        # Where only one setting has more, all stay with the common seed.
        (("11", "10", "10"), [0, 1, 2], [0]),
        (("1", "1", "1"), [0, 1, 2], [0]),
        (("10", "01"), [0, 1], []),
        (("111",), [0], [0, 1, 2]),
    ],
)
def test_settings_and_seeds_that_lack_most_runs_go(
    rows: tuple[str, ...], settings: list[int], seeds: list[int]
) -> None:
    assert chosen(*rows) == (settings, seeds)


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_no_run_is_missing_and_nothing_is_left_out_without_need(exists: NDArray[np.bool_]) -> None:
    settings, seeds = rectangle(exists)
    assert exists[np.ix_(settings, seeds)].all()
    assert len(settings) >= min(2, len(exists))
    assert (np.diff(settings) > 0).all()
    assert (np.diff(seeds) > 0).all()
    if exists.all():
        assert (len(settings), len(seeds)) == exists.shape


@given(st.integers(2, 6), st.integers(2, 6), st.data())
def test_a_further_seed_that_many_settings_lack_costs_no_setting(
    num_settings: int, num_seeds: int, data: st.DataObject
) -> None:
    extra = data.draw(arrays.arrays(np.bool_, (num_settings, 1)))
    exists = np.hstack([np.ones((num_settings, num_seeds), dtype=bool), extra])
    settings, seeds = rectangle(exists)
    if (~extra).sum() * (num_seeds + 1) > num_settings:
        assert settings.tolist() == list(range(num_settings))
        assert seeds.tolist() == list(range(num_seeds))
    else:
        # So few settings lack the seed that they go instead.
        assert settings.tolist() == np.flatnonzero(extra).tolist()
        assert len(seeds) == num_seeds + 1


def test_what_is_left_out_has_its_name() -> None:
    correct = simulated(np.random.default_rng(0), [0.0] * 4, num_seeds=4, num_examples=50)
    settings = scores_of(correct, seeds=[(5, 12, 9, 3)] * 4)
    # The third setting lacks two of four seeds, and two of four settings lack seed 3; then only the last lacks it.
    for place, kept in ((2, [0, 2]), (3, [0, 1, 2])):
        settings[place] = scores_of(correct[:, kept], seeds=[tuple((5, 12, 9, 3)[seed] for seed in kept)] * 4)[place]
    blocks = make_blocks(settings)
    assert (blocks.settings_left_out, blocks.seeds_left_out, blocks.seeds) == (["2"], [3], (5, 9, 12))
    assert blocks.accuracy is not None
    assert blocks.accuracy.places.tolist() == [0, 1, 3]
    # Seeds are put in one order, whatever that of the runs.
    assert (blocks.accuracy.values == correct[[0, 1, 3]][:, [0, 2, 1]]).all()


def test_without_a_common_seed_everything_is_left_out() -> None:
    correct = simulated(np.random.default_rng(0), [0.0] * 2, num_seeds=1, num_examples=50)
    blocks = make_blocks(scores_of(correct, seeds=[(1,), (2,)]))
    assert (blocks.accuracy, blocks.loss, blocks.seeds) == (None, None, ())
    assert (blocks.settings_left_out, blocks.seeds_left_out) == (["0", "1"], [1, 2])
