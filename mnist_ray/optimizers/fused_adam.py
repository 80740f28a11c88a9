"""torch's fused Adam and AdamW without the time that their step spends around the kernel.

A stack has a parameter group for each learning rate and weight decay, and torch's step takes as long around a group's
kernel as the kernel itself takes for a network of this size.
"""

from collections.abc import Callable
from typing import Any

import torch

from mnist_ray.torch_private import add_one, fused_adam_, fused_adamw_, make_state, unprofiled


class _FusedStep:
    """The step of torch.optim.Adam(fused=True), the kernels called directly."""

    _kernel: Callable[..., Any]

    @torch.no_grad()
    def step(self: Any, closure: None = None) -> None:
        """Updates all parameters, bit for bit as torch's own step does.

        Args:
          closure: not supported; torch's signature.
        """
        assert closure is None
        for group in self.param_groups:
            if group["params"][0] not in self.state:
                # torch's own code makes the state.
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


class Adam(_FusedStep, torch.optim.Adam):  # type: ignore[misc]
    """torch.optim.Adam(fused=True)."""

    _kernel = staticmethod(fused_adam_)


class AdamW(_FusedStep, torch.optim.AdamW):  # type: ignore[misc]
    """torch.optim.AdamW(fused=True)."""

    _kernel = staticmethod(fused_adamw_)
