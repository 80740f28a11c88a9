"""The engine for any network: torch's modules and autograd, with DistributedDataParallel for several ranks."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnist_ray.models.dropout import StepNoise, draw_from
from mnist_ray.models.flat_memory import flatten
from mnist_ray.models.global_batch_norm import GlobalBatchNorm, share_statistics
from mnist_ray.models.loss import cross_entropy, hits, loss_and_hits
from mnist_ray.models.networks import cancelled_biases
from mnist_ray.models.ranks import Ranks
from mnist_ray.models.training_pass import TrainingPass
from mnist_ray.noise.global_generators import seed_generators


class Modules:
    """K networks, computed one after the other; see engine.Engine.

    Each run is computed as if it were alone, so it gets the same bits in stacks of any size.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        *,
        device: torch.device,
        bf16: bool = False,
        ranks: Ranks = Ranks(),  # noqa: B008
    ) -> None:
        """Takes the networks over: moves them to the device, and makes their dropouts draw from the runs' streams.

        Args:
          networks: one per run.
          bf16: whether the forward pass runs under torch's autocast to bfloat16.
          ranks: the processes that share every batch; more than one only for a single network.
        """
        self._device, self._bf16, self._ranks = device, bf16, ranks
        self._noise = StepNoise(ranks)
        self._networks = [network.to(device) for network in networks]
        self.parameters = []
        for network in self._networks:
            cancelled = cancelled_biases(network)
            draw_from(network, self._noise)
            self.parameters.append(flatten(each for each in network.parameters() if each.requires_grad))
            for name in cancelled:
                network.get_parameter(name).requires_grad_(False)
        self._callable = list(self._networks)
        if ranks.world_size > 1:
            self.share()

    def share(self) -> None:
        """Makes every step of the only network one of all ranks; for several ranks, or a group of one in tests."""
        (network,) = self._networks
        if self._device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        else:
            share_statistics(network, self._ranks)
        self._callable = [_data_parallel(network, self._device)]

    @property
    def gradients(self) -> Sequence[Tensor]:
        """See Engine."""
        gradients = [parameter.grad for parameter in self.parameters]
        return [gradient for gradient in gradients if gradient is not None]

    def __len__(self) -> int:
        return len(self._networks)

    def take(self, runs: Sequence[int]) -> "Modules":
        """See Engine; the new engine shares the networks with this one."""
        taken = copy(self)
        for name in ("_networks", "_callable", "parameters"):
            setattr(taken, name, [getattr(self, name)[run] for run in runs])
        return taken

    def state_dict(self, run: int) -> dict[str, Tensor]:
        """See Engine."""
        state = self._networks[run].state_dict()
        return {name: value.detach().contiguous().to("cpu", copy=True) for name, value in state.items()}

    def forward_backward(self, images: Tensor, labels: Tensor, training: TrainingPass) -> tuple[Tensor, Tensor]:
        """See Engine."""
        computed = [
            self._forward_backward(run, images[run], labels[run : run + 1], training.of(slice(run, run + 1)))
            for run in range(len(self))
        ]
        losses, correct = zip(*computed, strict=True)
        return torch.cat(losses), torch.cat(correct)

    def _forward_backward(
        self, run: int, images: Tensor, labels: Tensor, training: TrainingPass
    ) -> tuple[Tensor, Tensor]:
        gradient = self.parameters[run].grad
        assert gradient is not None
        gradient.zero_()
        if not self._networks[run].training:
            self._networks[run].train()
        draws = training.streams.draws16("global generators", torch.tensor([self._ranks.rank]), 4)
        seed_generators(int(draws.contiguous().view(torch.int64)), self._device)
        with torch.enable_grad():
            with self._noise.step(training), self._autocast():
                logits = self._callable[run](images)
            logits = logits.to(images.dtype)[None]
            losses, by_logits = cross_entropy(logits.detach(), labels, smoothing=training.smoothing)
            # DistributedDataParallel averages over the ranks, and the loss is a mean over the global batch.
            logits.backward(by_logits.mul_(self._ranks.world_size / training.global_batch_size))
        return losses.sum(1) / training.global_batch_size, hits(logits, labels).sum(1)

    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See Engine."""
        if not len(images):
            # A rank may have no rows of the last batch, and not every network can compute without any.
            losses = torch.zeros(len(self), dtype=torch.float64, device=self._device)
            return losses, losses.new_zeros(len(self), 0, dtype=torch.bool)
        with torch.no_grad(), self._autocast():
            logits = torch.stack([network.eval()(images).to(images.dtype) for network in self._networks])
        return loss_and_hits(logits, labels.expand(len(self), -1))

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)


def _data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    # Every rank computes the same running statistics; other buffers are rank 0's, as by default.
    shared = (nn.SyncBatchNorm, GlobalBatchNorm)
    known = {id(each) for module in network.modules() if isinstance(module, shared) for each in module.buffers()}
    has_others = any(id(buffer) not in known for buffer in network.buffers())
    # The argument's name since torch 2.14, and before.
    names = ("forward_sync_buffers", "broadcast_buffers")
    name = next(name for name in names if name in signature(DistributedDataParallel).parameters)
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        # A network may leave layers out, at random or on some ranks. And with False the sums of a resumed run would be
        # rounded otherwise: DistributedDataParallel then divides the gradients anew after its first step.
        find_unused_parameters=True,
        **{name: has_others},  # type: ignore[arg-type]
    )
