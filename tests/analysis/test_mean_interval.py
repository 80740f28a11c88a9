import numpy as np
import pytest

from mnist_ray.analysis.mean_interval import mean_interval
from tests.support.simulated_scores import simulated


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_the_interval_covers_the_accuracy_over_other_seeds_and_examples(num_seeds: int) -> None:
    generator = np.random.default_rng(0)
    drawn = [simulated(generator, [0.0], num_seeds=num_seeds, num_examples=500)[0] for _ in range(800)]
    # Each draw is a sample of its own, so the mean of all is 28 times as sure as each.
    accuracy = np.mean(drawn)
    covered = [low <= accuracy <= high for low, high in map(mean_interval, drawn)]
    assert 0.93 <= np.mean(covered) <= 0.985
