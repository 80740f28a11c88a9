"""The device and the number of threads that a process computes with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mnist_ray.errors import ClusterError


def choose_device(use_gpu: bool | None = None) -> torch.device:
    """Returns the GPU if there is one, else the CPU with one thread.

    Args:
      use_gpu: False for the CPU even if there is a GPU, True to require a GPU.

    Raises:
      ClusterError: a GPU is required and there is none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise ClusterError("use_gpu: this machine has no GPU; leave out --device gpu")
    return prepared(torch.device("cuda" if use_gpu is not False and torch.cuda.is_available() else "cpu"))


def prepared(device: torch.device) -> torch.device:
    """Returns the device; if it is the CPU, limits torch to one thread.

    One thread gives the same bits in every process and is the fastest for networks of this size.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


@contextmanager
def torch_settings_kept() -> Iterator[None]:
    """Restores the process-wide settings of torch that training and evaluating change, for the rest of a program."""
    num_threads, matmul, cudnn = torch.get_num_threads(), torch.backends.cuda.matmul, torch.backends.cudnn
    before = (cudnn.deterministic, matmul.allow_tf32, cudnn.allow_tf32)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        cudnn.deterministic, matmul.allow_tf32, cudnn.allow_tf32 = before
