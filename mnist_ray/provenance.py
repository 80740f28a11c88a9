"""What made a result: library versions, hardware, command line; nothing that names a person or a host."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "torchvision", "ray", "numpy", "pyarrow", "scikit-learn", "safetensors", "pillow")


def command_line(arguments: Sequence[str] | None = None) -> str:
    """Returns a command line as one would type it, this process's own by default.

    The program is named without its folder, and the home folder is written as ~: a path there names a person.
    """
    program, *rest = sys.argv if arguments is None else arguments
    return " ".join([Path(program).name, *map(_argument, rest)])


def lineage(*, command_line: str, num_workers: int, gpu: str | None) -> dict[str, Any]:
    """Returns what a checkpoint keeps of this process and its machine, as JSON values.

    Args:
      command_line: the one that asked for the run.
      num_workers: data-parallel workers that share its batches.
      gpu: name of the GPU that computes, None for a CPU.
    """
    return {
        "command_line": command_line,
        "python": platform.python_version(),
        "libraries": libraries(),
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count() or 1,
        "gpu": gpu,
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "num_workers": num_workers,
    }


@cache
def libraries() -> dict[str, str]:
    """Returns the versions of the libraries that a result depends on; one that isn't installed is left out."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def cpu_name() -> str:
    """Returns the processor's name, its architecture where the system tells no more."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _argument(text: str) -> str:
    home = f"{Path.home()}/"
    if len(home) > 2 and text.startswith(home):
        # The shell expands ~/ outside of quotes only.
        return f"~/{shlex.quote(text.removeprefix(home))}"
    return shlex.quote(text)
