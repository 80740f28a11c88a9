"""Matrix products of a stack: each run gets the same bits in stacks of any size."""

import torch
from torch import Tensor

from mnist_ray import torch_private

# On a CPU, torch multiplies with MKL, which uses only 256-bit vectors on non-Intel processors. oneDNN uses 512 bits on
# a processor that has them, but its calls cost more, so small products stay with MKL. The choice depends only on the
# processor's kind and the shapes of one run.
_ONEDNN = torch_private.linear_pointwise
_ONEDNN_MULTIPLICATIONS = 1 << 20


def bmm(left: Tensor, right: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """Returns left @ right (+ bias) for each run.

    Args:
      left: [runs, rows, inner].
      right: [runs, inner, columns].
      bias: [runs, columns], or None.
    """
    if _takes_onednn(left, right):
        assert _ONEDNN is not None
        biases = [None] * len(left) if bias is None else bias.unbind()
        runs = zip(left.unbind(), right.transpose(1, 2).unbind(), biases, strict=True)
        parts = [_ONEDNN(*run, "none", [], "") for run in runs]
        return parts[0][None] if len(parts) == 1 else torch.stack(parts)
    return torch.bmm(left, right) if bias is None else torch.baddbmm(bias[:, None], left, right)


def bmm_into(target: Tensor, left: Tensor, right: Tensor) -> None:
    """Computes target = left @ right for each run like bmm; the target may be strided and of another type."""
    if left.device.type != "cpu" or left.dtype != target.dtype:
        target.copy_(torch.bmm(left, right))
    elif _takes_onednn(left, right):
        assert _ONEDNN is not None
        for of_run, *factors in zip(target.unbind(), left.unbind(), right.transpose(1, 2).unbind(), strict=True):
            of_run.copy_(_ONEDNN(*factors, None, "none", [], ""))
    else:
        # torch.bmm would copy into a strided target.
        for of_run, *factors in zip(target.unbind(), left.unbind(), right.unbind(), strict=True):
            torch.mm(*factors, out=of_run)


def _takes_onednn(left: Tensor, right: Tensor) -> bool:
    multiplications = left.shape[1] * left.shape[2] * right.shape[2]
    is_fitting = left.device.type == "cpu" and left.dtype == torch.float32
    return _ONEDNN is not None and is_fitting and multiplications >= _ONEDNN_MULTIPLICATIONS
