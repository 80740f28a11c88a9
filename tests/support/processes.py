"""Processes that a command has started."""

import glob
import ipaddress
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path


def descendants(ancestor: int, *, title: bytes) -> list[int]:
    """Returns the pids of a process's descendants whose command line holds a text."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(folder.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [pid for pid in sorted(parents) if _is_below(pid, ancestor, parents) and title in _command_line(pid)]


def with_variable(text: str) -> list[int]:
    """Returns the pids of the processes that were started with a variable, NAME=VALUE."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        # Others' are not to be read; one that has ended has none.
        with suppress(OSError):
            if text.encode() in folder.joinpath("environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def wait_until_gone(pids: Callable[[], list[int]], *, seconds: float = 30) -> None:
    """Waits until a question for pids is answered with none."""
    deadline = time.monotonic() + seconds
    while left := pids():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def written_so_far(folder: Path, pattern: str) -> list[str]:
    """Returns the paths that match while others write and delete there: Path.glob fails where a folder vanishes."""
    return glob.glob(pattern, root_dir=folder)


def _is_below(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != ancestor:
        pid = parents[pid]
    return pid == ancestor


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def listening(pids: Collection[int]) -> list[tuple[str, int]]:
    """Returns the address, in numbers, and the pid of each TCP port that some processes listen on."""
    owners = {}
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                owners[os.readlink(link)] = pid
    found = []
    for table in ("tcp", "tcp6"):
        for row in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = row.split()
            inode = f"socket:[{row.split()[9]}]"
            if state == "0A" and inode in owners:
                # Words of four bytes, each in this machine's own order.
                words = bytes.fromhex(local.partition(":")[0])
                packed = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
                found.append((str(ipaddress.ip_address(packed)), owners[inode]))
    return found


def title_of(pid: int) -> str:
    """Returns a process's command line, or the name that Ray has given it."""
    return _command_line(pid).replace(b"\0", b" ").decode().strip()
