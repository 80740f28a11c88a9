import pytest
import torch

from mnist_ray.config.variants import variant_config
from mnist_ray.training.data import prepare_data
from mnist_ray.training.loop import Training
from mnist_ray.training.watching import EpochProgress, Watch
from tests.support.tiny_digits import tiny_digits

CPU = torch.device("cpu")


def test_a_watch_tells_the_first_step_some_between_and_the_last_of_each_epoch() -> None:
    told: list[EpochProgress] = []
    clock = 100.0
    watch = Watch(told.append, world_size=2, now=lambda: clock)
    losses = torch.tensor([[1.0, 0.5, 0.0, 0.5]])
    for epoch in (1, 2):
        for step in (1, 2, 3, 4):
            watch(epoch, step, losses)
            clock += 0.15
    # Two ranks: each has half of a loss.
    assert told == [
        EpochProgress(1, 1, 4, 2.0, None),
        EpochProgress(1, 3, 4, 1.0, pytest.approx(0.15)),
        EpochProgress(1, 4, 4, 1.0, pytest.approx(0.15)),
        EpochProgress(2, 2, 4, 1.5, pytest.approx(0.15)),
        EpochProgress(2, 4, 4, 1.0, pytest.approx(0.15)),
    ]


@pytest.mark.parametrize("tabled", [False, True])
def test_watching_a_run_changes_no_bit(tabled: bool) -> None:
    config = variant_config("dropout_batchnorm", {"dataset": "digits", "hidden_sizes": (16, 12), "epochs": 2})
    data = prepare_data(config, tiny_digits(400), device=CPU)
    told: list[EpochProgress] = []
    # A clock that makes it tell every step.
    ticks = iter(range(1000))
    watches = (None, Watch(told.append, now=lambda: float(next(ticks))))
    states = []
    for watch in watches:
        training = Training([config], data, device=CPU, tabled=tabled)
        for _ in range(config.epochs):
            training.train_epoch(watch)
        states.append(training.state(0))
    alone, watched = states
    for name, value in alone.model.items():
        assert torch.equal(value, watched.model[name]), name
    for name, value in alone.optimizer.items():
        assert torch.equal(value, watched.optimizer[name]), name
    num_steps = told[0].num_steps
    assert [(each.epoch, each.step) for each in told] == [
        (epoch, step) for epoch in (1, 2) for step in range(1, num_steps + 1)
    ]
    assert told[-1].loss == pytest.approx(watched.history[-1].train_loss, rel=0.05)
