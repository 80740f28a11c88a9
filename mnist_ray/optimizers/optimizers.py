"""Optimizers and learning-rate schedules, by name.

torch is imported inside the functions: the command line lists these names without it.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from mnist_ray.config.settings import TrainConfig


def _adam(groups: list[dict[str, Any]], _: "TrainConfig") -> "torch.optim.Optimizer":
    from mnist_ray.optimizers.fused_adam import Adam

    return Adam(groups, fused=True)


def _adamw(groups: list[dict[str, Any]], _: "TrainConfig") -> "torch.optim.Optimizer":
    from mnist_ray.optimizers.fused_adam import AdamW

    return AdamW(groups, fused=True)


def _sgd(groups: list[dict[str, Any]], config: "TrainConfig") -> "torch.optim.Optimizer":
    import torch

    return torch.optim.SGD(groups, momentum=config.momentum, fused=True)


def _rmsprop(groups: list[dict[str, Any]], _: "TrainConfig") -> "torch.optim.Optimizer":
    import torch

    return torch.optim.RMSprop(groups)


# What the learning rate of a step and the decay depend on.
_GROUP_SETTINGS = (
    "learning_rate", "weight_decay", "schedule", "warmup_epochs", "step_epochs", "step_factor", "epochs",
)  # fmt: skip

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], "TrainConfig"], "torch.optim.Optimizer"]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
    "rmsprop": _rmsprop,
}


def make_optimizer(
    name: str, parameters: Sequence["torch.Tensor"], configs: Sequence["TrainConfig"]
) -> "torch.optim.Optimizer":
    """Makes one optimizer for the runs of a stack.

    Runs with the same learning rates and weight decay share a group, and so one call of a fused kernel; each group
    holds a config under "config", for `set_learning_rates`.

    Args:
      name: a key of OPTIMIZERS.
      parameters: one flat leaf tensor a run, its `.grad` set.
      configs: one config a run; learning rate, its schedule and weight decay are the run's own.
    """
    groups: dict[object, dict[str, Any]] = {}
    for parameter, config in zip(parameters, configs, strict=True):
        key = tuple(getattr(config, setting) for setting in _GROUP_SETTINGS)
        new = {"params": [], "lr": config.learning_rate, "weight_decay": config.weight_decay, "config": config}
        groups.setdefault(key, new)["params"].append(parameter)
    return OPTIMIZERS[name](list(groups.values()), configs[0])


def set_learning_rates(optimizer: "torch.optim.Optimizer", step: int, steps_per_epoch: int) -> None:
    """Sets each run's learning rate of a step; see learning_rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, steps_per_epoch, group["config"])


def _constant(progress: float, config: "TrainConfig") -> float:  # noqa: ARG001 - a schedule's signature
    return 1.0


def _cosine(progress: float, config: "TrainConfig") -> float:
    """Half a cosine from 1 down to 0 over what follows the warm-up (Loshchilov and Hutter 2017)."""
    share = (progress - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-12)
    return 0.5 * (1.0 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


def _step(progress: float, config: "TrainConfig") -> float:
    return config.step_factor ** int(progress // config.step_epochs)


SCHEDULES: dict[str, Callable[[float, "TrainConfig"], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
}


def learning_rate(step: int, steps_per_epoch: int, config: "TrainConfig") -> float:
    """Returns the learning rate of a step: linear warm-up, then the config's schedule.

    Args:
      step: steps done before this one, from 0.
      steps_per_epoch: steps in one epoch.
      config: the run's config.
    """
    warmup_steps = config.warmup_epochs * steps_per_epoch
    if step + 1 <= warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    return config.learning_rate * SCHEDULES[config.schedule](step / steps_per_epoch, config)
