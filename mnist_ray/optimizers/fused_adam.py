"""torch's fused Adam and AdamW with less overhead per parameter group.

A stack has a parameter group for each learning rate and weight decay; for networks of this size, torch's overhead
per group takes as long as the kernel.
"""

from collections.abc import Callable
from typing import Any

import torch

from mnist_ray.torch_private import Uncompiled, add_one, fused_adam_, fused_adamw_, make_state, unprofiled


class _FusedStep:
    """The step of torch.optim.Adam(fused=True), calling the kernels directly."""

    _kernel: Callable[..., Any]

    @torch.no_grad()
    def step(self: Any, closure: None = None) -> None:
        """Updates all parameters, with the same bits as torch's own step; closure is part of torch's signature only."""
        assert closure is None
        for group in self.param_groups:
            if group["params"][0] not in self.state:
                make_state(self, group)
            states = [self.state[parameter] for parameter in group["params"]]
            steps = [state["step"] for state in states]
            add_one(steps)
            beta1, beta2 = group["betas"]
            self._kernel(
                group["params"],
                [parameter.grad for parameter in group["params"]],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                amsgrad=False,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
                grad_scale=None,
                found_inf=None,
            )

    unprofiled(step)


class Adam(_FusedStep, Uncompiled, torch.optim.Adam):  # type: ignore[misc]
    """torch.optim.Adam(fused=True)."""

    _kernel = staticmethod(fused_adam_)


class AdamW(_FusedStep, Uncompiled, torch.optim.AdamW):  # type: ignore[misc]
    """torch.optim.AdamW(fused=True)."""

    _kernel = staticmethod(fused_adamw_)
