"""Commands as jobs on a head, in the tests' own process: a process for each would mostly import torch and Ray."""

import contextlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.config.requirements import JOB_VARIABLE
from tests.support.ray_head import RayHead, ray_head
from tests.support.warm_processes import call

# While a command runs: a condition on what it has logged so far (or on anything else), and what is done with its truth.
Step = tuple[Callable[[str], Any], Callable[[Any], object]]


class SharedHead:
    """A head with two CPUs for all tests of this process that are not about a head itself, from the first to the last.

    It takes a tenth of a core while it does nothing, so it ends before the tests without a Ray.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._head: RayHead | None = None

    def get(self) -> RayHead:
        self._head = self._head or self._stack.enter_context(ray_head())
        return self._head

    def close(self) -> None:
        self._head = None
        self._stack.close()


SHARED_HEAD = SharedHead()


@pytest.fixture
def shared_head() -> RayHead:
    return SHARED_HEAD.get()


@dataclass(frozen=True)
class Done:
    """What a command ended with."""

    code: int
    output: str
    log: str


def run_job(head: RayHead, *arguments: str, steps: Sequence[Step] = ()) -> Done:
    """Runs a command as the entry point of a job on a head.

    Args:
      head: where its workers run.
      arguments: the command line, without the program.
      steps: done one after the other while the command runs, each when its condition holds.
    """
    variables = {JOB_VARIABLE: "1", "RAY_ADDRESS": head.gcs_address}
    with environment_with(variables):
        return run_here(*arguments, steps=steps)


def launch(head: RayHead, *arguments: str) -> Done:
    """Runs a command that submits a job to a head, or asks for one, as a person does who has this checkout."""
    with environment_with({"HOME": head.environment["HOME"]}):
        return run_here(*arguments, "--address", head.address)


def run_apart(*arguments: str) -> Done:
    """Runs a command that starts a local Ray, in a process of its own: Ray turns its token on for all of a process."""
    done: Done = call(run_here, *arguments)
    return done


def run_here(*arguments: str, steps: Sequence[Step] = ()) -> Done:
    """Runs a command in this process; see run_job."""
    ended, output, log = threading.Event(), io.StringIO(), io.StringIO()
    # A run's lineage keeps the command line.
    typed, sys.argv = sys.argv, ["mnist-ray", *arguments]
    with ThreadPoolExecutor(1) as beside:
        taken = beside.submit(_take, steps, log, ended)
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(log), warnings.catch_warnings():
                # Ray warns of its own deprecated settings when it is imported.
                warnings.simplefilter("ignore")
                code = _code_of(arguments)
        finally:
            sys.argv = typed
            ended.set()
    assert "Traceback" not in log.getvalue(), log.getvalue()
    assert taken.result() == len(steps), f"ended with {code} before its time: {log.getvalue()}"
    return Done(code, output.getvalue(), log.getvalue())


def _code_of(arguments: Sequence[str]) -> int:
    try:
        return run_command(list(arguments))
    except SystemExit as error:
        # The exit code of a job that was followed.
        return int(error.code or 0)


def _take(steps: Sequence[Step], log: io.StringIO, ended: threading.Event) -> int:
    """Takes the steps until the command has ended, and returns how many were taken."""
    for number, (found, act) in enumerate(steps):
        while not (what := found(log.getvalue())):
            if ended.wait(0.02):
                return number
        act(what)
    return len(steps)


@contextlib.contextmanager
def environment_with(variables: Mapping[str, str]) -> Iterator[None]:
    before, folder = {name: os.environ.get(name) for name in variables}, Path.cwd()
    os.environ |= variables
    try:
        yield
    finally:
        # A job on a cluster leaves its folder.
        os.chdir(folder)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
