"""The only uses of torch's private names, and what each gains; a test fails when a name vanishes.

Measured with torch 2.14.1 on two busy cores of an AMD EPYC with AVX2 and without AVX-512, one thread, 24 rounds
interleaved, CPU time of an epoch at batch 64, median (quartiles) of the ratios:

- With torch.optim.Adam(fused=True) instead of direct calls of its kernels, a stack of one takes 1.12 (1.10-1.20)
  times as long for `baseline`, 1.01 (0.94-1.08) for `dropout`, 1.02 (0.96-1.11) for `dropout_batchnorm`; a stack of
  four 1.15 (1.08-1.19), 1.02 (0.98-1.09), 1.03 (0.99-1.11).
- torch.optim.Optimizer's methods import torch's compiler when they are first called, to tell it to leave them alone:
  `import torch._dynamo` takes each process that trains 1.9 s (1.8-2.0) of CPU time after 2.5 s (2.3-2.8) for
  `import torch`, three runs.
- Larger products take half as long with oneDNN as with MKL on an AMD EPYC with AVX-512 (benchmarks/stack.py); on this
  CPU they take longer and cost 24 to 32 % of an epoch.
"""

from collections.abc import Callable
from functools import cache
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor

fused_adam_: Callable[..., Any] = torch._fused_adam_
fused_adamw_: Callable[..., Any] = torch._fused_adamw_

# oneDNN's left @ right.T + bias, which torch ships next to MKL; None where it is missing or the slower of the two.
linear_pointwise: Callable[..., Any] | None = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    else None
)


class Uncompiled:
    """A mixin with an optimizer's methods as they are without torch's wrappers, which import its compiler."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


@cache
def uncompiled(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Returns a subclass of an optimizer whose methods don't import torch's compiler."""
    return type(kind.__name__, (Uncompiled, kind), {"step": torch.no_grad()(unwrap(kind.step))})


def has_hooks(module: torch.nn.Module) -> bool:
    """Tells whether a module computes more than its own forward pass: old weight norm, pruning, hooks of a user."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def add_one(steps: list[Tensor]) -> None:
    """Adds 1 to each tensor."""
    torch._foreach_add_(steps, 1)


def make_state(optimizer: Any, group: dict[str, Any]) -> None:
    """Creates the state of a group's parameters with the code of torch's Adam or AdamW."""
    optimizer._init_group(group, [], [], [], [], [], [])


def unprofiled(step: Callable[..., Any]) -> None:
    """Keeps torch from wrapping an optimizer's step in a profiler range, which takes a third of the kernel's time."""
    step.hooked = True  # type: ignore[attr-defined]
