from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mnist_ray.analysis.selection import select, selection_bias
from tests.support.simulated_scores import expected_accuracy, simulated


def crossed(correct: NDArray[np.bool_]) -> float:
    """The noise of a mean as half of the mean variance of all pairs: of their seeds' and examples' mean differences."""
    num_settings, num_seeds, num_examples = correct.shape
    of_pairs = []
    for first, second in combinations(range(num_settings), 2):
        d = correct[first].astype(float) - correct[second]
        of_seeds, of_examples = d.mean(axis=1) - d.mean(), d.mean(axis=0) - d.mean()
        rest = d - d.mean() - of_seeds[:, None] - of_examples
        residual = (rest**2).sum() / (num_seeds - 1) / (num_examples - 1)
        seeds = num_examples * (of_seeds**2).sum() / (num_seeds - 1)
        examples = num_seeds * (of_examples**2).sum() / (num_examples - 1)
        of_pairs.append((seeds + examples - residual) / num_seeds / num_examples)
    return float(np.mean(of_pairs)) / 2


def test_the_bias_is_by_the_noise_of_seeds_and_examples() -> None:
    generator = np.random.default_rng(0)
    correct = simulated(generator, [-0.05] * 6, num_seeds=4, num_examples=300, own_spread=4.0)
    means = correct.mean(axis=(1, 2))
    # Each true mean is one of many levels, each as likely as its share of the best fit of all means.
    levels = np.linspace(means.min(), means.max(), 400)
    spread = levels * (1 - levels)
    variances = crossed(correct) * spread / (means * (1 - means)).mean()
    density = np.stack([stats.norm.pdf(mean, levels, np.sqrt(variances)) for mean in means])
    shares = np.full(400, 1 / 400)
    for _ in range(200):
        posterior = density * shares / (density @ shares)[:, None]
        shares = posterior.mean(axis=0)
    expected = means.max() - posterior[means.argmax()] @ levels
    assert 0.003 < expected < means.max() - means.min()
    assert selection_bias(correct) == pytest.approx(expected, rel=0.02)
    # The seeds alone say less.
    assert selection_bias(correct.mean(axis=2, keepdims=True)) < 0.9 * expected


def test_the_bias_of_choosing_by_hand() -> None:
    # Without a difference between the seeds, nothing is noise.
    assert selection_bias(np.array([[0.9, 0.9], [0.5, 0.5], [0.7, 0.7]])[:, :, None]) == 0
    # One level far above two others that are equal: its mean is sure, and so is that of the best of the others.
    values = np.array([[0.55, 0.45], [0.5, 0.5], [0.88, 0.92]])[:, :, None]
    assert selection_bias(values) == pytest.approx(0, abs=0.005)
    # What all settings have in common favours none.
    near = np.array([[0.51, 0.49], [0.5, 0.5], [0.50, 0.53]])[:, :, None]
    assert 0.001 < selection_bias(near) == pytest.approx(selection_bias(near + np.array([[0.1], [-0.1]])), rel=1e-6)
    assert selection_bias(np.ones((3, 2, 1))) == 0
    assert selection_bias(np.ones((3, 2, 40), dtype=np.bool_)) == 0


# settings, seeds, examples, true gains of the settings in turn, spread of the examples' thresholds over the settings;
# the share of the true optimism that is found lies between the last two.
SHARES: dict[str, tuple[int, int, int, tuple[float, ...], float, float, float]] = {
    "8 equal": (8, 3, 500, (0.0,), 2.0, 0.7, 0.9),
    "32 equal": (32, 3, 500, (0.0,), 2.0, 0.8, 1.0),
    "32 equal, items alike": (32, 3, 500, (0.0,), 0.0, 0.75, 1.0),
    "32 equal, many examples": (32, 5, 5_000, (0.0,), 2.0, 0.8, 1.0),
    "32 in two groups": (32, 3, 500, (0.0, 0.02), 2.0, 0.8, 1.1),
    "32 in five groups": (32, 3, 500, (0.0, 0.002, 0.005, 0.01, 0.02), 2.0, 0.7, 1.1),
    "32 in four groups": (32, 3, 500, (-0.015, -0.0075, 0.0, 0.0075), 2.0, 0.8, 1.2),
}


def share_found(case: str, num_draws: int) -> tuple[float, float]:
    """Of the optimism of choosing the best: what is found with the noise of the examples, and without."""
    num_settings, num_seeds, num_examples, gains, own_spread, _, _ = SHARES[case]
    generator = np.random.default_rng(14)
    gains = tuple(np.resize(gains, num_settings).tolist())
    truth = np.array([expected_accuracy(gain, own_spread=own_spread) for gain in gains])
    true, found, of_seeds = 0.0, 0.0, 0.0
    for _ in range(num_draws):
        correct = simulated(generator, gains, num_seeds=num_seeds, num_examples=num_examples, own_spread=own_spread)
        means = correct.mean(axis=(1, 2))
        chosen = means.argmax()
        true += (means - means.mean())[chosen] - (truth - truth.mean())[chosen]
        found += selection_bias(correct)
        of_seeds += selection_bias(correct.mean(axis=2, keepdims=True))
    return found / true, of_seeds / true


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.series, pytest.mark.timeout(3600)]) for case in SHARES]
)
def test_most_of_the_optimism_is_found(case: str) -> None:
    *_, least, most = SHARES[case]
    found, _ = share_found(case, 400 if SHARES[case][2] < 1_000 else 100)
    assert least < found < most


def test_most_of_the_optimism_is_found_in_a_few_draws() -> None:
    found, of_seeds = share_found("32 equal", 40)
    assert 0.75 < found < 1.05
    assert of_seeds < 0.6
    assert 0.6 < share_found("32 in two groups", 40)[0] < 1.4


def test_validation_chooses_and_test_accuracy_is_reported() -> None:
    def row(run: str, validation: float, loss: float, test: float) -> dict[str, object]:
        return {"run": run, "best_val_accuracy": validation, "best_val_loss": loss, "accuracy": test}

    groups = {
        "best on test": {0: row("a", 0.90, 0.3, 0.99), 1: row("b", 0.90, 0.3, 0.99)},
        "higher loss": {0: row("c", 0.95, 0.3, 0.93), 1: row("d", 0.95, 0.3, 0.93)},
        "chosen": {0: row("e", 0.94, 0.2, 0.91), 1: row("f", 0.96, 0.2, 0.93)},
    }
    chosen = select(groups, {})
    assert (chosen.setting, chosen.num_settings, chosen.num_seeds) == ("chosen", 3, 2)
    assert (chosen.val_accuracy, chosen.test_accuracy, chosen.optimism) == pytest.approx((0.95, 0.92, 0.03))
    assert chosen.selection_bias is not None
    assert chosen.selection_bias > 0
    assert (chosen.counts_examples, str(chosen.bias_words)[-30:]) == (False, "of 3, by the spread of the seeds"[-30:])
    # Each run is right on all but its last 10, 5, 6 or 4 examples of 100.
    wrong = {"a": 10, "b": 10, "c": 5, "d": 5, "e": 6, "f": 4}
    correct = {run: np.arange(100) < 100 - count for run, count in wrong.items()}
    with_examples = select(groups, correct)
    assert with_examples.selection_bias == pytest.approx(
        selection_bias(np.array([[correct[run] for run in runs] for runs in ("ab", "cd", "ef")]))
    )
    assert str(with_examples.bias_words).endswith("by the spread of the seeds and of the validation examples")
    # A further seed of one setting is not among the common seeds; a run without its answers is.
    groups["chosen"][2] = row("g", 0.95, 0.2, 0.92)
    assert select(groups, correct).selection_bias == with_examples.selection_bias
    assert select(groups, {run: correct[run] for run in "abcde"}) == select(groups, {})
    few = select({"one": groups["chosen"], "two": groups["higher loss"]}, correct)
    assert (few.selection_bias, few.bias_words) == (None, None)
    assert select({name: {0: runs[0]} for name, runs in groups.items()}, correct).selection_bias is None
