"""A disk that is soon full, for commands that run in a mount namespace of their own."""

import shutil
import subprocess
from pathlib import Path

import pytest

_ENTER = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]


def on_small_disk(folder: Path, size: str, *command: str, then: str = "") -> list[str]:
    """Returns a command line that runs a command with a small file system mounted at a folder.

    Args:
      folder: an existing one; for all other processes it stays as it is.
      size: of the file system, such as 128k.
      command: what is run, its exit code kept.
      then: shell commands for after it, while the file system is still there.
    """
    mount = f"mount -t tmpfs -o size={size} tmpfs {folder}"
    if shutil.which("unshare") is None or subprocess.run([*_ENTER, mount], capture_output=True).returncode != 0:
        pytest.skip("needs unshare and the right to mount a small file system")
    script = f'{mount}; code=0; "$@" || code=$?; {then or ":"}; exit $code'
    return [*_ENTER, script, "sh", *command]
