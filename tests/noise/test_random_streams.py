import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mnist_ray.noise import random_streams
from mnist_ray.noise.random_streams import draws16, draws16_for_step, permutation, random_words, stream_key, uniform

KEYS = st.integers(-(2**63), 2**63 - 1)


def test_words_are_the_published_outputs_of_splitmix64() -> None:
    words = random_words([1234567], torch.arange(5), 1).flatten()
    assert [word % 2**64 for word in words.tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_rows_and_columns_count_through_one_stream() -> None:
    whole = random_words([1234567], torch.arange(12), 1).flatten()
    assert torch.equal(random_words([1234567], torch.arange(3), 4).flatten(), whole)


@given(st.lists(KEYS, min_size=1, max_size=3), st.lists(st.integers(0, 2**40), max_size=5), st.integers(1, 9))
def test_numpy_and_torch_give_the_same_bits(keys: list[int], rows: list[int], columns: int) -> None:
    row_numbers = torch.tensor(rows, dtype=torch.int64)
    on_cpu = random_streams._words_on_cpu(keys, row_numbers.numpy(), columns)
    on_device = random_streams._words_on_device(keys, row_numbers, columns)
    assert on_cpu.dtype == on_device.dtype == torch.int64
    assert torch.equal(on_cpu, on_device)


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 9))
def test_the_rows_of_a_rank_are_the_rows_of_the_whole_batch(num_rows: int, world_size: int, columns: int) -> None:
    rows = torch.arange(num_rows)
    for draw in (draws16, uniform):
        whole = draw([3, -4], rows, columns)
        assert whole.shape == (2, num_rows, columns)
        for rank in range(world_size):
            assert torch.equal(draw([3, -4], rows[rank::world_size], columns), whole[:, rank::world_size])


def test_each_key_gives_what_it_gives_alone() -> None:
    rows = torch.arange(7)
    together = draws16([1, 2, 3], rows, 10)
    for index, key in enumerate([1, 2, 3]):
        assert torch.equal(together[index], draws16([key], rows, 10)[0])


@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3),
    st.integers(0, 10_000),
    st.lists(st.integers(0, 200), max_size=8),
    st.sampled_from([129, 300, 20_000]),
)
def test_draws_made_for_several_steps_at_once_are_those_of_each_step(
    seeds: list[int], step: int, rows: list[int], columns: int
) -> None:
    row_numbers = torch.tensor(rows, dtype=torch.int64)
    expected = draws16([stream_key(seed, "dropout1", step) for seed in seeds], row_numbers, columns)
    assert torch.equal(draws16_for_step(seeds, "dropout1", step, row_numbers, columns), expected)


@given(KEYS, st.integers(0, 300))
def test_a_permutation_has_each_number_once(key: int, length: int) -> None:
    assert sorted(permutation(key, length).tolist()) == list(range(length))


def test_permutations_of_different_keys_differ_and_of_one_key_do_not() -> None:
    assert torch.equal(permutation(1, 100), permutation(1, 100))
    assert not torch.equal(permutation(1, 100), permutation(2, 100))


def test_every_place_of_a_permutation_is_equally_likely() -> None:
    counts = np.zeros((6, 6))
    for key in range(3000):
        counts[np.arange(6), permutation(stream_key(key, "shuffle", 1), 6).numpy()] += 1
    statistic = ((counts - 500) ** 2 / 500).sum()
    assert 0.001 < stats.chi2.sf(statistic, df=25) < 0.999


def test_draws16_are_uniform_over_all_16_bits() -> None:
    draws = draws16([stream_key(0, "dropout1", step) for step in range(4)], torch.arange(64), 1024)
    assert draws.dtype == torch.int16
    for byte in (draws.to(torch.int32) & 0xFF, draws.to(torch.int32) >> 8 & 0xFF):
        counts = torch.bincount(byte.flatten(), minlength=256).numpy()
        assert 0.001 < stats.chisquare(counts).pvalue < 0.999


def test_uniform_numbers_lie_in_the_half_open_unit_interval_and_spread_evenly() -> None:
    numbers = uniform([stream_key(0, "affine", 0)], torch.arange(20_000), 2)
    assert numbers.dtype == torch.float64
    assert 0 <= float(numbers.min()) < 1e-3
    assert 1 - 1e-3 < float(numbers.max()) < 1
    assert 0.001 < stats.kstest(numbers.flatten().numpy(), "uniform").pvalue < 0.999
    correlation = np.corrcoef(numbers[0].T.numpy())[0, 1]
    assert abs(correlation) < 4 / 20_000**0.5


def test_uniform_takes_the_upper_53_bits_of_a_word() -> None:
    assert uniform([1234567], torch.arange(1), 1).item() == (6457827717110365317 >> 11) / 2**53


def test_uniform_never_reaches_one_even_for_the_largest_word() -> None:
    key = 3558559446808474027  # SplitMix64 run backwards from a word of 64 ones
    assert random_words([key], torch.arange(1), 1).item() == -1
    assert uniform([key], torch.arange(1), 1).item() == 1 - 2**-53


def test_seed_purpose_and_counters_each_make_another_stream() -> None:
    keys = {
        stream_key(0, "shuffle", 1),
        stream_key(1, "shuffle", 1),
        stream_key(0, "dropout1", 1),
        stream_key(0, "shuffle", 2),
        stream_key(0, "shuffle", 1, 1),
        stream_key(0, "shuffle", 11),
        stream_key(0, "shuffle"),
    }
    assert len(keys) == 7


def test_a_stream_key_never_changes_between_versions() -> None:
    # Results in storages depend on it: runs from before a change of this number can't be repeated after it.
    assert stream_key(0, "shuffle", 1) == -2335929822886684255
