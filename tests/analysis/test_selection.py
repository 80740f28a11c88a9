import numpy as np
import pytest

from mnist_ray.analysis.selection import select, selection_bias


def test_the_bias_of_choosing_by_hand() -> None:
    # Without a difference between the seeds, nothing is noise.
    assert selection_bias(np.array([[0.9, 0.9], [0.5, 0.5], [0.7, 0.7]])) == pytest.approx(0, abs=1e-12)
    # Residuals are +-0.1 and 0: their mean square is 0.04 / 2, and half of it is the noise of a mean of two seeds. The
    # means 1, 2 and 3 have variance 1, so a hundredth of the best one's lead over the mean is noise.
    values = np.array([[1.1, 0.9], [2.0, 2.0], [2.9, 3.1]])
    assert selection_bias(values) == pytest.approx(0.01)
    # What all settings have in common favours none.
    assert selection_bias(values + np.array([5.0, -3.0])) == pytest.approx(0.01)
    assert selection_bias(np.ones((2, 5))) is None
    assert selection_bias(np.ones((3, 1))) is None
    assert selection_bias(np.ones((3, 2))) == 0


@pytest.mark.parametrize(
    ("num_settings", "num_seeds", "spread", "least", "most"),
    [
        (8, 3, 0.0, 0.7, 1.0),
        (32, 3, 0.0, 0.8, 1.0),
        (32, 5, 0.0, 0.8, 1.0),
        (32, 3, 1.0, 0.9, 1.15),
        (8, 5, 1.0, 0.9, 1.3),
    ],
)
def test_most_of_the_bias_is_found_whether_or_not_the_settings_differ(
    num_settings: int, num_seeds: int, spread: float, least: float, most: float
) -> None:
    generator = np.random.default_rng(0)
    true, estimated = [], []
    for _ in range(1000):
        quality = spread * generator.normal(size=num_settings)
        common = generator.normal(size=num_seeds)
        values = quality[:, None] + common + generator.normal(size=(num_settings, num_seeds))
        means = values.mean(axis=1)
        chosen = means.argmax()
        true.append((means - means.mean())[chosen] - (quality - quality.mean())[chosen])
        estimated.append(selection_bias(values))
    assert least < np.mean(estimated) / np.mean(true) < most


def test_validation_chooses_and_test_accuracy_is_reported() -> None:
    def row(validation: float, loss: float, test: float) -> dict[str, float]:
        return {"best_val_accuracy": validation, "best_val_loss": loss, "accuracy": test}

    groups = {
        "best on test": {0: row(0.90, 0.3, 0.99), 1: row(0.90, 0.3, 0.99)},
        "higher loss": {0: row(0.95, 0.3, 0.93), 1: row(0.95, 0.3, 0.93)},
        "chosen": {0: row(0.94, 0.2, 0.91), 1: row(0.96, 0.2, 0.93)},
    }
    chosen = select(groups)
    assert (chosen.setting, chosen.num_settings, chosen.num_seeds) == ("chosen", 3, 2)
    assert (chosen.val_accuracy, chosen.test_accuracy, chosen.optimism) == pytest.approx((0.95, 0.92, 0.03))
    assert chosen.selection_bias is not None
    assert chosen.selection_bias > 0
    assert select({"one": {0: row(0.9, 0.1, 0.8)}}).selection_bias is None
