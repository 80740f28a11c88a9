"""The division of a global batch among ranks, and sums over the ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor


class LostRankError(RuntimeError):
    """Another rank is gone: an error of a machine, not of a network that exchanges statistics."""


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(str(error)) from error


@dataclass(frozen=True)
class Ranks:
    """The processes that train one run together; a single process is a group of one."""

    rank: int = 0
    world_size: int = 1

    def rows(self, num_rows: int) -> slice:
        """Returns this rank's rows of a global batch: every world_size-th row, starting at its rank."""
        return slice(self.rank, num_rows, self.world_size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over the ranks, in place on every rank."""
        if self.world_size > 1:
            with _exchange():
                torch.distributed.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Returns every rank's tensor, [world_size, *shape]."""
        if self.world_size == 1:
            return tensor[None]
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        with _exchange():
            torch.distributed.all_gather(gathered, tensor)
        return torch.stack(gathered)
