from typing import Any

import pytest

from mnist_ray.config.settings import TrainConfig
from mnist_ray.results.history import EpochResult
from mnist_ray.tracking.epoch_lines import EpochLines


class Tracked(list[str]):
    def update(self, runs: Any) -> None:
        self.extend(runs)


def history(num_epochs: int) -> tuple[EpochResult, ...]:
    return tuple(EpochResult(epoch, 0.5, 0.75, 0.25, 0.875, 0.001, 1000, 0.5) for epoch in range(1, num_epochs + 1))


def line(epoch: int) -> str:
    return f"a: epoch {epoch}/3  train loss 0.5000 acc 0.7500  val loss 0.2500 acc 0.8750  2,000 examples/s\n"


def test_each_epoch_is_shown_and_tracked_once_also_when_a_history_arrives_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracked: Any = Tracked()
    lines = EpochLines("a", TrainConfig(epochs=3), tracking=tracked, num_before=0)
    for num_epochs in (1, 1, 3):
        lines.show(history(num_epochs))
    assert capsys.readouterr().err == line(1) + line(2) + line(3)
    assert tracked == ["a", "a", "a"]


def test_a_resumed_run_says_once_where_it_went_on(capsys: pytest.CaptureFixture[str]) -> None:
    lines = EpochLines("a", TrainConfig(epochs=3), tracking=Tracked(), num_before=1)
    for num_epochs in (2, 3):
        lines.show(history(num_epochs))
    assert capsys.readouterr().err == "a: goes on after epoch 1\n" + line(2) + line(3)
