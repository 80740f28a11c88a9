"""A disk that is soon full, in the mount namespace of a process of its own."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ENTER = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Gives the path by which this process reaches a small file system, which is gone after the block.

    Args:
      folder: an existing one, where it is mounted; by this path it stays as it is.
      size: of the file system, such as 128k.
    """
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    script = f"mount -t tmpfs -o size={size} tmpfs '{folder}'; echo mounted; read end"
    with subprocess.Popen([*_ENTER, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip("needs the right to mount a small file system")
        yield Path(f"/proc/{holder.pid}/root{folder}")
        holder.communicate("\n")
