"""Optimizers and learning-rate schedules, by name.

Imports torch inside the functions: the command line lists these names without it.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mnist_ray.setting import Setting, one_of

if TYPE_CHECKING:
    import torch

_MAX_COUNT = 2**31 - 1


def _adam(groups: list[dict[str, Any]], _: "OptimizerConfig") -> "torch.optim.Optimizer":
    from mnist_ray.optimizers.fused_adam import Adam

    return Adam(groups, fused=True)


def _adamw(groups: list[dict[str, Any]], _: "OptimizerConfig") -> "torch.optim.Optimizer":
    from mnist_ray.optimizers.fused_adam import AdamW

    return AdamW(groups, fused=True)


def _sgd(groups: list[dict[str, Any]], config: "OptimizerConfig") -> "torch.optim.Optimizer":
    import torch

    from mnist_ray.torch_private import uncompiled

    return uncompiled(torch.optim.SGD)(groups, momentum=config.momentum, fused=True)


def _rmsprop(groups: list[dict[str, Any]], _: "OptimizerConfig") -> "torch.optim.Optimizer":
    import torch

    from mnist_ray.torch_private import uncompiled

    return uncompiled(torch.optim.RMSprop)(groups)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], "OptimizerConfig"], "torch.optim.Optimizer"]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
    "rmsprop": _rmsprop,
}


def _constant(progress: float, config: "OptimizerConfig") -> float:  # noqa: ARG001 - a schedule's signature
    return 1.0


def _cosine(progress: float, config: "OptimizerConfig") -> float:
    """Half a cosine from 1 down to 0 over the epochs after the warm-up (Loshchilov and Hutter 2017)."""
    share = (progress - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-12)
    return 0.5 * (1.0 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


def _step(progress: float, config: "OptimizerConfig") -> float:
    return config.step_factor ** int(progress // config.step_epochs)


SCHEDULES: dict[str, Callable[[float, "OptimizerConfig"], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
}
# With these, a run of more epochs has other learning rates from its first epoch on.
SCHEDULES_OF_LENGTH = frozenset({"cosine"})


class OptimizerConfig(BaseModel):
    """The settings that an optimizer and its learning rate depend on."""

    model_config = ConfigDict(frozen=True)

    optimizer: Annotated[str, one_of(OPTIMIZERS), Setting(group="Optimizer")] = Field("adam", description="optimizer")
    learning_rate: Annotated[float, Setting(is_per_run=True, word="lr", group="Optimizer")] = Field(
        1e-3, gt=0, description="peak learning rate"
    )
    momentum: Annotated[float, Setting(group="Optimizer")] = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    weight_decay: Annotated[float, Setting(is_per_run=True, is_on_page=True, word="wd", group="Optimizer")] = Field(
        0.0, ge=0, description="lambda: adds lambda*w to the gradient (adamw: shrinks w by learning_rate*lambda*w)"
    )
    schedule: Annotated[str, one_of(SCHEDULES), Setting(is_per_run=True, group="Optimizer")] = Field(
        "constant", description="learning rate after the warm-up"
    )
    warmup_epochs: Annotated[float, Setting(short="warmup", is_per_run=True, group="Optimizer")] = Field(
        0.0, ge=0, description="epochs of linear warm-up from 0, may be a fraction"
    )
    step_epochs: Annotated[int, Setting(is_per_run=True, group="Optimizer")] = Field(
        3, ge=1, le=_MAX_COUNT, description="epochs between two drops of the step schedule"
    )
    step_factor: Annotated[float, Setting(is_per_run=True, group="Optimizer")] = Field(
        0.1, gt=0, le=1, description="factor of each drop of the step schedule"
    )
    gradient_clip_norm: Annotated[float | None, Setting(short="clip", is_per_run=True, group="Optimizer")] = Field(
        None, gt=0, description="largest global norm of a step's gradient"
    )
    epochs: int = Field(5, ge=1, le=_MAX_COUNT, description="passes over the training examples")

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs}: must not exceed epochs={self.epochs}")
        return self


def make_optimizer(
    name: str, parameters: Sequence["torch.Tensor"], configs: Sequence["OptimizerConfig"]
) -> "torch.optim.Optimizer":
    """Makes one optimizer for the runs of a stack.

    Runs with the same optimizer settings share a group and hence one call of a fused kernel; each group
    holds a config under "config", for `set_learning_rates`.

    Args:
      name: a key of OPTIMIZERS.
      parameters: one flat leaf tensor per run, with `.grad` set.
      configs: one config per run; learning rate, schedule and weight decay may differ between runs.
    """
    groups: dict[object, dict[str, Any]] = {}
    for parameter, config in zip(parameters, configs, strict=True):
        key = tuple(getattr(config, setting) for setting in OptimizerConfig.model_fields)
        new = {"params": [], "lr": config.learning_rate, "weight_decay": config.weight_decay, "config": config}
        groups.setdefault(key, new)["params"].append(parameter)
    return OPTIMIZERS[name](list(groups.values()), configs[0])


def set_learning_rates(optimizer: "torch.optim.Optimizer", step: int, steps_per_epoch: int) -> None:
    """Sets each run's learning rate for a step; see learning_rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, steps_per_epoch, group["config"])


def learning_rate(step: int, steps_per_epoch: int, config: "OptimizerConfig") -> float:
    """Returns the learning rate of a step, numbered from 0: linear warm-up, then the config's schedule."""
    warmup_steps = config.warmup_epochs * steps_per_epoch
    if step + 1 <= warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    return config.learning_rate * SCHEDULES[config.schedule](step / steps_per_epoch, config)
