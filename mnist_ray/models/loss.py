"""Cross-entropy with label smoothing, and what an engine returns of it."""

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Computes each example's cross-entropy and its gradient.

    Args:
      logits: [runs, batch, classes].
      labels: int64 [runs, batch].
      smoothing: label smoothing, a number or [runs, 1] (Szegedy et al. 2016).

    Returns:
      Losses in nats, [runs, batch], and the gradient of each with respect to its logits, [runs, batch, classes].
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)
    hit = log_probabilities.gather(-1, labels[..., None])[..., 0]
    gradient = log_probabilities.exp()
    if isinstance(smoothing, float) and not smoothing:
        return hit.neg_(), gradient.scatter_add_(
            -1, labels[..., None], gradient.new_full((1,), -1.0).expand_as(hit)[..., None]
        )
    target = torch.zeros_like(gradient).scatter_(-1, labels[..., None], 1.0)
    losses = -(1 - smoothing) * hit - smoothing * log_probabilities.mean(-1)
    share = torch.as_tensor(smoothing, dtype=logits.dtype, device=logits.device)[..., None]
    return losses, gradient.sub_((1 - share) * target + share / logits.shape[-1])


def loss_and_hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sum of losses, float64 [runs], and which predictions are correct; see cross_entropy and hits."""
    losses, _ = cross_entropy(logits, labels)
    return losses.sum(1, dtype=torch.float64), hits(logits, labels)


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns which predictions are correct, bool [runs, batch]."""
    return logits.argmax(-1) == labels
