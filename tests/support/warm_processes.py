"""Processes that have torch and the launcher from their start: forked from one that imported them once.

A new Python spends seconds on importing torch.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TextIO

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["torch", "boto3", "pyarrow.parquet", "scipy.stats", "mnist_ray.cli.main", "mnist_ray.jobs.train",
     "mnist_ray.jobs.evaluate", "mnist_ray.data.unlabelled", "mnist_ray.text.tables"]
)  # fmt: skip
_WAIT_S = 120


def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Returns what a function of a module returns in a process of its own."""
    receiving, sending = _SERVER.Pipe(duplex=False)
    process = start(_send_result, sending, function, arguments)
    sending.close()
    try:
        return receiving.recv()
    finally:
        wait(process)


def peak_memory() -> int:
    """Returns the greatest size that this process has had, in bytes.

    In a warm process it begins at what the imports take.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def start(function: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """Starts a function of a module in a process of its own."""
    process = _SERVER.Process(target=_run, args=(function, arguments, Path.cwd(), dict(os.environ)))
    process.start()
    return process


def wait(process: ForkServerProcess) -> int:
    """Waits for the end of a process and returns its exit code; a signal's is negative."""
    process.join(_WAIT_S)
    assert process.exitcode is not None, "still running"
    return process.exitcode


@contextmanager
def launched(*arguments: str) -> Iterator[tuple[ForkServerProcess, TextIO]]:
    """Gives a process that runs `mnist-ray ARGUMENTS`, and its standard error; its standard output is dropped."""
    receiving, sending = _SERVER.Pipe(duplex=False)
    process = start(_launch, arguments, sending)
    sending.close()
    try:
        with open(os.dup(receiving.fileno())) as errors:
            yield process, errors
    finally:
        process.kill()
        process.join()


def _run(
    function: Callable[..., object], arguments: tuple[object, ...], folder: Path, environment: Mapping[str, str]
) -> None:
    import torch

    # The process that it is forked from has those of the first test that needed one.
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def _send_result(sending: Connection, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    sending.send(function(*arguments))


def _launch(arguments: tuple[str, ...], errors: Connection) -> None:
    from mnist_ray.cli import process

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors.fileno(), 2)
    errors.close()
    sys.argv = ["mnist-ray", *arguments]
    process.main(arguments)
