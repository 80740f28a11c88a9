"""What works on this machine, and what to do about the rest."""

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from mnist_ray.errors import MnistRayError
from mnist_ray.storage import open_storage


def examine(storage: str, data_dir: Path, address: str | None) -> bool:
    """Prints one line a part and returns whether all that is needed works."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: f"{platform.python_version()}, {os.cpu_count()} CPUs"),
        ("torch", _torch),
        ("ray", lambda: version("ray")),
        ("data", lambda: _data(data_dir)),
        ("storage", lambda: _storage(storage)),
        ("token", _token),
    ]
    if address:
        checks.append(("cluster", lambda: _cluster(address)))
    results = [_report(name, check) for name, check in checks]
    return all(results)


def _report(name: str, check: Callable[[], str]) -> bool:
    try:
        text, works = check(), True
    except (MnistRayError, PackageNotFoundError, ImportError) as error:
        text, works = str(error), False
    click.echo(f"{'ok  ' if works else 'FAIL'} {name:8} {text}")
    return works


def _torch() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{torch.__version__}, {', '.join(gpus) if gpus else 'no GPU: training runs on the CPU'}"


def _data(data_dir: Path) -> str:
    from mnist_ray.data import load_examples
    from mnist_ray.errors import DataError

    try:
        examples = load_examples("mnist", "train", data_dir=data_dir, download=False)
    except DataError:
        return f"no MNIST in {data_dir}: the first run downloads it; the data set 'digits' needs no download"
    return f"MNIST in {data_dir}: {len(examples)} training images"


def _storage(uri: str) -> str:
    storage = open_storage(uri)
    storage.check()
    return f"{storage.uri}: can be written, read, listed and deleted"


def _token() -> str:
    from mnist_ray.cluster.address import read_token

    return (
        "found"
        if read_token()
        else "none; a cluster with token authentication needs RAY_AUTH_TOKEN or ~/.ray/auth_token"
    )


def _cluster(address: str) -> str:
    from mnist_ray.cluster import job_api

    job_api.connect(address)
    return f"{address}: answers"
