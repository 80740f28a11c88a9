"""Checks what works on this machine and says how to fix the rest."""

import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from mnist_ray.errors import ConfigError, MnistRayError
from mnist_ray.storage.storage import open_storage
from mnist_ray.text.doing import at_work
from mnist_ray.text.tables import print_text


def examine(storage: str, data_dir: Path, address: str | None) -> int:
    """Prints one line per check and returns the exit code of the first that fails, or 0."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: f"{platform.python_version()}, {os.cpu_count()} CPUs"),
        ("torch", _torch),
        ("ray", lambda: version("ray")),
        ("data", lambda: _data(data_dir)),
        ("storage", lambda: _storage(storage)),
        ("token", lambda: _token(address)),
    ]
    if address:
        checks.append(("cluster", lambda: _cluster(address)))
    with at_work("checking what works here"):
        found = [(name, *_outcome(check)) for name, check in checks]
    for name, text, code in found:
        print_text(text, name=f"{'FAIL' if code else 'ok  '} {name:8} ")
    return next((code for _, _, code in found if code), 0)


def _outcome(check: Callable[[], str]) -> tuple[str, int]:
    """Returns what a check says, and its exit code."""
    try:
        return check(), 0
    except MnistRayError as error:
        return str(error), error.exit_code
    except ImportError as error:
        # A missing package is the user's to install, not a bug.
        return str(error), ConfigError.exit_code


def _torch() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{torch.__version__}, {', '.join(gpus) if gpus else 'no GPU: training runs on the CPU'}"


def _data(data_dir: Path) -> str:
    from mnist_ray.data.datasets import load_examples
    from mnist_ray.data.idx import find_idx
    from mnist_ray.data.torchvision_sets import TORCHVISION_SETS

    mnist = TORCHVISION_SETS["mnist"]
    names = [name for pair in mnist.file_names.values() for name in pair]
    if not any(find_idx(folder, name) for folder in mnist.folders(data_dir) for name in names):
        return f"no MNIST in {data_dir}: the first run downloads it; the data set 'digits' needs no download"
    train = load_examples("mnist", "train", data_dir=data_dir, download=False)
    test = load_examples("mnist", "test", data_dir=data_dir, download=False)
    return f"MNIST in {data_dir}: {len(train)} training images, {len(test)} test images"


def _storage(uri: str) -> str:
    storage = open_storage(uri)
    storage.check()
    return f"{storage.uri}: can be written, each name once, read, listed and deleted"


def _token(address: str | None) -> str:
    from mnist_ray.submission.address import token_text

    return token_text(address)


def _cluster(address: str) -> str:
    from mnist_ray.submission.connect import connect

    client = connect(address)
    named = "" if client.address == address else f"{address}: its dashboard "
    return f"{named}{client.address} answers, with Ray {client.ray_version}"
