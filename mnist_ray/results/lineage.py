"""The origin of a result: library versions, hardware, command line; nothing that identifies a person or a host."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mnist_ray.storage.storage import without_secrets

LIBRARIES = ("torch", "torchvision", "ray", "numpy", "pyarrow", "scikit-learn", "safetensors", "pillow")


# Tells a submitted job the command line that the user typed.
LAUNCHER_VARIABLE = "MNIST_RAY_COMMAND_LINE"


def command_line(arguments: Sequence[str] | None = None) -> str:
    """Returns a command line as typed; by default the launcher's, or this process's own.

    Leaves out the program's folder and passwords in URIs, and writes the home folder as ~: its path names a person.
    """
    if arguments is None and os.environ.get(LAUNCHER_VARIABLE):
        return os.environ[LAUNCHER_VARIABLE]
    program, *rest = sys.argv if arguments is None else arguments
    path = Path(program)
    name = f"python -m {path.parent.name}" if path.name == "__main__.py" else path.name
    return " ".join([name, *map(_argument, rest)])


def lineage(*, command_line: str, num_workers: int, gpu: str | None) -> dict[str, Any]:
    """Returns what a checkpoint records about this process and its machine, as JSON values.

    Args:
      command_line: command line that requested the run.
      num_workers: data-parallel workers that share the run's batches.
      gpu: name of the GPU; None on a CPU.
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
    """Returns the versions of the installed libraries that a result depends on."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


@cache
def cpu_name() -> str:
    """Returns the processor's name, or its architecture if the system reports no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _argument(text: str) -> str:
    text = without_secrets(text)
    home = os.path.expanduser("~")
    # Also after '=' or ':': --storage=/home/me/results, folder:/home/me/images.
    match = re.search(rf"(?<![\w.-]){re.escape(home)}(?=/|$)", text) if home not in ("~", "/") else None
    if match is None:
        return shlex.quote(text)
    before, rest = text[: match.start()], text[match.end() :]
    # The shell expands ~ only outside quotes.
    return f"{shlex.quote(before) if before else ''}~{'/' if rest else ''}{shlex.quote(rest[1:]) if rest[1:] else ''}"
