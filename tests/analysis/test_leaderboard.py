from typing import Any

import pytest

from mnist_ray.analysis.leaderboard import leaderboard, print_leaderboard
from mnist_ray.analysis.leaderboard import test_leaderboard as board_with_test
from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.results.columns import config_columns


def row(run: str, accuracy: float | None, *, status: str = "finished", **settings: Any) -> dict[str, Any]:
    config: TrainConfig = variant_config("dropout", settings)
    found = accuracy is not None
    return {
        **{name: values[0] for name, values in config_columns([config]).items()},
        "run": run,
        "status": status,
        "best_val_accuracy": accuracy,
        "best_val_loss": 1 - accuracy if accuracy is not None else None,
        "best_epoch": 4 if found else None,
        "seconds": 2.0,
        "checkpoint": f"runs/{run}/best" if found else None,
    }


ROWS = [
    row("a0", 0.90, dropout=0.3, seed=0),
    row("a1", 0.92, dropout=0.3, seed=1),
    row("b0", 0.95, dropout=0.5, seed=0),
    row("b1", None, status="diverged", dropout=0.5, seed=1),
    row("c0", None, status="unfinished", dropout=0.1, seed=0),
    row("d0", 0.92, dropout=0.3, epochs=9, seed=0),
]


def test_settings_are_ranked_by_mean_validation_accuracy_over_their_seeds() -> None:
    board = leaderboard(ROWS, ("dropout", "epochs"))
    assert [(line["dropout"], line["epochs"], line["num_done"], line["num_runs"]) for line in board] == [
        (0.5, 5, 1, 2),
        (0.3, 9, 1, 1),
        (0.3, 5, 2, 2),
        (0.1, 5, 0, 1),
    ]
    assert board[0]["num_diverged"] == 1
    assert board[2]["val_accuracy_mean"] == pytest.approx(0.91)
    # The sample's: sqrt((0.01^2 + 0.01^2) / 1).
    assert board[2]["val_accuracy_std"] == pytest.approx(0.0141421356)
    assert (board[1]["val_accuracy_std"], board[3]["val_accuracy_mean"]) == (None, None)


def test_a_tie_goes_to_the_lower_loss_and_then_to_the_settings() -> None:
    tied = [
        row("x", 0.9, dropout=0.5),
        row("y", 0.9, dropout=0.1),
        {**row("z", 0.9, dropout=0.2), "best_val_loss": 0.01},
    ]
    assert [line["dropout"] for line in leaderboard(tied, ("dropout",))] == [0.2, 0.1, 0.5]


def test_test_accuracies_are_shown_but_do_not_rank() -> None:
    metrics = [
        {"run": run, "accuracy": accuracy, "log_loss": 0.5}
        for run, accuracy in (("a0", 0.99), ("a1", 0.97), ("b0", 0.5))
    ]
    board = board_with_test(ROWS[:4], metrics, ("dropout",))
    assert [line["dropout"] for line in board] == [0.5, 0.3]
    assert board[1]["accuracy_mean"] == pytest.approx(0.98)
    assert (board[0]["accuracy_mean"], board[0]["accuracy_std"]) == (0.5, None)


def test_the_printed_board_says_what_its_figures_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_leaderboard(leaderboard(ROWS, ("dropout",)), ("dropout",), limit=3)
    shown = capsys.readouterr().out
    assert "0.9100 ± 0.0141" in shown
    assert "1/2, 1 diverged" in shown
    assert "Ranked by mean validation accuracy" in shown
    assert "1 more settings follow" in " ".join(shown.split())
