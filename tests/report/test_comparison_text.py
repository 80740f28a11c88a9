"""What stands in the printed tables."""

import pytest

from mnist_ray.analysis.effects import FACTORIAL, Effect, Term
from mnist_ray.analysis.estimates import Estimate
from mnist_ray.report.comparison_text import print_effects


def test_an_interval_without_0_says_why_it_is_unresolved(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(low: float) -> str:
        estimate = Estimate(0.003, low, 0.005, 0.01, 1e-6, 1e-6, 3, 7, "unresolved", 0.005)
        print_effects([Effect("accuracy", FACTORIAL, Term("batch_norm", "true", "false"), estimate, 4)])
        return " ".join(capsys.readouterr().out.split())

    assert "unresolved: fewer than 6 examples differ" in shown(0.001)
    assert "fewer" not in shown(-0.001)
