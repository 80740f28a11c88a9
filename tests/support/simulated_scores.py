"""Answers of runs on examples: simulated (items of realistic difficulty, a skill per setting and seed), and real."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mnist_ray.analysis.blocks import Scores

# Difficulties with a mean accuracy of 0.97 at skill 0, as of a small network on MNIST.
_EASE, _SPREAD = 11.0, 3.0


def simulated(
    generator: np.random.Generator,
    gains: Sequence[float],
    *,
    num_seeds: int,
    num_examples: int,
    seed_spread: Sequence[float] | float = 0.15,
    own_spread: float = 0.0,
) -> NDArray[np.bool_]:
    """Returns right and wrong answers, bool [settings, seeds, examples].

    Args:
      gains: expected accuracy of each setting above that of skill 0.
      seed_spread: standard deviation of the skills over the seeds, of each setting or of all, in logits; 0.1 is about
        0.1 points of accuracy.
    """
    thresholds = (_SPREAD * generator.logistic(size=num_examples) - _EASE).astype(np.float32)
    skills = np.array([_skill(gain) for gain in gains])[:, None]
    spread = np.broadcast_to(seed_spread, len(gains))[:, None]
    skills = skills + spread * generator.standard_normal((len(gains), num_seeds))
    if own_spread:
        own = own_spread * generator.standard_normal((len(gains), 1, num_examples), dtype=np.float32)
        thresholds = thresholds + own
    draws = generator.random((*skills.shape, num_examples), dtype=np.float32)
    # True with probability 1 / (1 + exp(threshold - skill)).
    right: NDArray[np.bool_] = draws * (1 + np.exp(thresholds - skills[:, :, None].astype(np.float32))) < 1
    return right


def expected_accuracy(gain: float, *, own_spread: float = 0.0, seed_spread: float = 0.15) -> float:
    """Returns the expectation of `simulated` for a setting, over seeds and examples."""
    ranks = (np.arange(4_000) + 0.5) / 4_000
    thresholds = _SPREAD * np.log(ranks / (1 - ranks)) - _EASE
    noise = stats.norm.ppf((np.arange(60) + 0.5) / 60) * np.hypot(own_spread, seed_spread)
    return float((1 / (1 + np.exp(thresholds[:, None] - _skill(gain) - noise))).mean())


@lru_cache
def _skill(gain: float) -> float:
    """Returns the skill with this gain of expected accuracy, by bisection on a fixed sample of difficulties."""
    if not gain:
        return 0.0
    grid = (np.arange(20_000) + 0.5) / 20_000
    thresholds = _SPREAD * np.log(grid / (1 - grid)) - _EASE

    def accuracy(skill: float) -> float:
        return float((1 / (1 + np.exp(thresholds - skill))).mean())

    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if accuracy(middle) - accuracy(0.0) < gain else (low, middle)
    return low


def scores_of(correct: NDArray[np.bool_], *, seeds: Sequence[Sequence[int]] | None = None) -> list[Scores]:
    """Returns settings named 0, 1, ... whose loss is 0.1 for a right answer and 2 for a wrong one."""
    loss = np.where(correct, np.float32(0.1), np.float32(2.0))
    names = seeds or [range(correct.shape[1])] * len(correct)
    return [Scores(str(place), tuple(names[place]), correct[place], loss[place]) for place in range(len(correct))]


def real_seeds() -> NDArray[np.bool_]:
    """Returns 8 settings (dropout 0, 0.2, 0.3, 0.5 x batch norm) x 20 seeds x 10,000 real MNIST test images."""
    with np.load(Path(__file__).with_name("real_seeds.npz")) as file:
        return np.unpackbits(file["correct"], axis=2, count=10_000).astype(np.bool_)
