"""Batch normalization with the statistics of the global batch of several ranks, on any device."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.errors import ConfigError
from mnist_ray.models.ranks import Ranks


class GlobalBatchNorm(nn.Module):
    """Like nn.SyncBatchNorm, which refuses CPUs; one exchange of a few numbers a channel in each direction.

    Reference: Ioffe and Szegedy 2015; ranks' means and squares are merged as in Chan, Golub, LeVeque 1979.
    """

    eps: float
    momentum: float | None
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor
    num_batches_tracked: Tensor
    ranks: Ranks

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalizes this rank's rows, [local_batch, channels, ...]; every rank must call it."""
        if not self.training and self.running_mean is not None:
            return functional.batch_norm(
                inputs, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        # Autocast's bfloat16 is too coarse for sums over a batch.
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        outputs, mean, squares, count = _Normalize.apply(wide, self.weight, self.bias, self.eps, self.ranks)
        if self.training and self.running_mean is not None:
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((squares / (count - 1).clamp_(min=1)).to(self.running_var.dtype), share)
        return outputs.to(inputs.dtype)  # type: ignore[no-any-return]


# torch's batch norms -> the same over all ranks.
BATCH_NORMS: dict[type[nn.Module], type[GlobalBatchNorm]] = {
    kind: type(kind.__name__, (GlobalBatchNorm, kind), {}) for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
}


def share_statistics(network: nn.Module, ranks: Ranks) -> None:
    """Makes the batch norms of a network use all ranks' rows; they stay the same objects of the same kinds.

    Raises:
      ConfigError: one is of a kind of its own, whose code may do more.
    """
    for name, module in network.named_modules():
        if type(module) in BATCH_NORMS:
            module.__class__ = BATCH_NORMS[type(module)]
            module.ranks = ranks
        elif isinstance(module, tuple(BATCH_NORMS)):
            raise ConfigError(
                f"num_workers={ranks.world_size}: {name} ({type(module).__name__}) is a batch norm of its own kind, "
                "which can't take the statistics of all workers' rows; use one of torch.nn, or one worker"
            )


class _Normalize(torch.autograd.Function):
    """Also returns the mean, the sum of squared deviations and the count of the global batch, each [channels]."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [dim for dim in range(inputs.dim()) if dim != 1]
        shape = (1, -1, *(1,) * (inputs.dim() - 2))
        local_count = inputs.numel() // inputs.shape[1]
        local_mean = inputs.sum(dims) / max(local_count, 1)
        local_squares = (inputs - local_mean.view(shape)).square().sum(dims)
        counts = torch.full_like(local_mean, local_count)
        counts, means, all_squares = ranks.gather(torch.stack((counts, local_mean, local_squares))).unbind(1)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        squares = (all_squares + counts * (means - mean).square()).sum(0)
        inverse_deviation = (squares / count + epsilon).rsqrt_()
        normalized = (inputs - mean.view(shape)).mul_(inverse_deviation.view(shape))
        scale = inverse_deviation if weight is None else inverse_deviation * weight
        ctx.save_for_backward(normalized, scale, count)
        ctx.dims, ctx.shape, ctx.ranks = dims, shape, ranks
        ctx.mark_non_differentiable(mean, squares, count)
        if weight is None or bias is None:
            return normalized.clone(), mean, squares, count
        return torch.addcmul(bias.view(shape), normalized, weight.view(shape)), mean, squares, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        normalized, scale, count = ctx.saved_tensors
        by_bias = gradient.sum(ctx.dims)
        by_weight = (gradient * normalized).sum(ctx.dims)
        # For a few hundred numbers, a gather takes half the time of gloo's sum.
        means = ctx.ranks.gather(torch.stack((by_bias, by_weight))).sum(0) / count
        mean_by_bias, mean_by_weight = (mean.view(ctx.shape) for mean in means)
        by_inputs = (gradient - mean_by_bias).addcmul_(normalized, mean_by_weight, value=-1).mul_(scale.view(ctx.shape))
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return by_inputs, by_weight if needs_weight else None, by_bias if needs_bias else None, None, None
