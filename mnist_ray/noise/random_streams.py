"""Random numbers that depend only on (seed, purpose, epoch or step).

A stream is a key; its i-th word is SplitMix64's i-th output from that key. Streams have no state, so a rank,
a stack of runs or a resumed run can compute just the words it needs, on any device, with the same bits.

Reference: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_DRAWS_PER_WORD = 4
# 256 KiB of draws fit into a core's cache; drawing more than 16 steps ahead saves no more time.
_DRAWS_AHEAD = 1 << 17
_STEPS_AHEAD = 16


def stream_key(seed: int, purpose: str, *counters: int) -> int:
    """Returns the key of a stream, a signed 64-bit integer.

    Args:
      seed: the run's seed.
      purpose: what the numbers are for, for instance "shuffle" or "dropout1".
      counters: epoch, step or class, to distinguish streams of the same purpose.
    """
    text = "/".join((str(seed), purpose, *map(str, counters)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def random_words(keys: Sequence[int] | Tensor, rows: Tensor, words_per_row: int) -> Tensor:
    """Returns 64 random bits for each key, row and column.

    A row's words depend only on its number, so a rank gets the same words as the whole batch.

    Args:
      keys: stream keys, int64 [keys] if a tensor.
      rows: int64 [rows], row numbers >= 0, on the device that computes the words.
      words_per_row: columns.

    Returns:
      int64 [keys, rows, words_per_row], uniform over all 64-bit patterns.
    """
    if rows.device.type == "cpu":
        return _words_on_cpu(keys, rows.numpy(), words_per_row)
    return _words_on_device(keys, rows, words_per_row)


def _words_on_cpu(keys: Sequence[int] | Tensor, rows: np.ndarray, words_per_row: int) -> Tensor:
    # numpy has unsigned shifts and is three times as fast here as torch.
    # The counter is row * words_per_row + column, multiplied term by term modulo 2**64.
    gamma = np.uint64(_GAMMA)
    columns = np.arange(1, words_per_row + 1, dtype=np.uint64) * gamma
    first = rows.astype(np.uint64)[:, None] * (np.asarray([words_per_row], dtype=np.uint64) * gamma)
    # Allocated by torch: an empty numpy array has strides that torch can't view as int16.
    words = torch.empty(len(keys), len(rows), words_per_row, dtype=torch.int64)
    bits = words.numpy().view(np.uint64)
    np.add(np.asarray(keys, dtype=np.int64).view(np.uint64)[:, None, None] + first, columns, out=bits)
    shifted = np.empty_like(bits)
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, None), strict=True):
        bits ^= np.right_shift(bits, np.uint64(shift), out=shifted)
        if multiplier is not None:
            bits *= np.uint64(multiplier)
    return words


def _words_on_device(keys: Sequence[int] | Tensor, rows: Tensor, words_per_row: int) -> Tensor:
    columns = torch.arange(1, words_per_row + 1, device=rows.device)
    counter = rows[:, None] * words_per_row + columns
    words = torch.as_tensor(keys, device=rows.device)[:, None, None] + counter * _signed(_GAMMA)
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, None), strict=True):
        # torch shifts int64 arithmetically; the mask clears the copied sign bits.
        words ^= (words >> shift) & ((1 << (64 - shift)) - 1)
        if multiplier is not None:
            words *= _signed(multiplier)
    return words


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def draws16(keys: Sequence[int] | Tensor, rows: Tensor, columns: int) -> Tensor:
    """Returns uniform 16-bit draws, int16 [keys, rows, columns], in [-32768, 32767]."""
    words = random_words(keys, rows, math.ceil(columns / _DRAWS_PER_WORD))
    return words.view(torch.int16)[..., :columns]


def draws16_for_step(seeds: Sequence[int], purpose: str, step: int, rows: Tensor, columns: int) -> Tensor:
    """Returns uniform 16-bit draws of the streams (seed, purpose, step), int16 [seeds, rows, columns]; read-only.

    Draws once per distinct seed. On a CPU, draws small sizes for several steps at once, since calls take longer than
    the drawing.
    """
    distinct = tuple(dict.fromkeys(seeds))
    draws = _draws_of_distinct(distinct, purpose, step, rows, columns)
    return for_each_seed(draws, seeds, distinct)


def for_each_seed(values: Tensor, seeds: Sequence[int], distinct: Sequence[int]) -> Tensor:
    """Expands values per distinct seed to values per run, without a copy if all seeds are equal or all distinct.

    Args:
      values: [distinct seeds, ...].
      seeds: a seed for each run.
      distinct: the seeds without repetitions, in the order of their first appearance.

    Returns:
      [seeds, ...]; read-only.
    """
    if len(distinct) == 1:
        return values.expand(len(seeds), *values.shape[1:])
    if len(distinct) == len(seeds):
        return values
    place = {seed: index for index, seed in enumerate(distinct)}
    return values.index_select(0, torch.tensor([place[seed] for seed in seeds], device=values.device))


def _draws_of_distinct(seeds: tuple[int, ...], purpose: str, step: int, rows: Tensor, columns: int) -> Tensor:
    draws_per_step = len(seeds) * len(rows) * columns
    # A rank may have no rows of a partial batch.
    steps = min(_DRAWS_AHEAD // draws_per_step, _STEPS_AHEAD) if draws_per_step else 0
    if rows.device.type != "cpu" or steps < 2:
        return draws16([stream_key(seed, purpose, step) for seed in seeds], rows, columns)
    block, position = divmod(step, steps)
    steps_ahead = range(block * steps, (block + 1) * steps)
    return _draws_ahead(seeds, purpose, steps_ahead, rows.numpy().tobytes(), columns)[position]


@lru_cache(maxsize=8)
def _draws_ahead(seeds: tuple[int, ...], purpose: str, steps: range, rows: bytes, columns: int) -> Tensor:
    """Returns int16 [steps, seeds, rows, columns]."""
    keys = [stream_key(seed, purpose, step) for step in steps for seed in seeds]
    draws = draws16(keys, torch.frombuffer(bytearray(rows), dtype=torch.int64), columns)
    return torch.unflatten(draws, 0, (len(steps), len(seeds)))


def uniform(keys: Sequence[int] | Tensor, rows: Tensor, columns: int) -> Tensor:
    """Returns uniform numbers in [0, 1) with 53 random bits, float64 [keys, rows, columns]."""
    words = random_words(keys, rows, columns)
    return ((words >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53


def permutation(key: int, length: int) -> Tensor:
    """Returns a random order of 0 ... length - 1, int64 [length], on the CPU."""
    words = random_words([key], torch.arange(length), 1).flatten()
    return torch.argsort(words, stable=True)
