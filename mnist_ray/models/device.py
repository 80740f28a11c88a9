"""Where a process computes, and with how many threads."""

import torch

from mnist_ray.errors import ClusterError


def choose_device(use_gpu: bool | None = None) -> torch.device:
    """Returns the GPU if there is one, else the CPU with one thread.

    Args:
      use_gpu: False for the CPU all the same, True for no CPU.

    Raises:
      ClusterError: a GPU was asked for and there is none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise ClusterError("use_gpu: this machine has no GPU; leave out --use-gpu")
    return prepared(torch.device("cuda" if use_gpu is not False and torch.cuda.is_available() else "cpu"))


def prepared(device: torch.device) -> torch.device:
    """Returns the device; a process that computes on the CPU does so in one thread from now on.

    One thread gives the same bits in every process, and is the fastest for networks of this size.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device
