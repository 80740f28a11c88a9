"""Processes that a command has started."""

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


def _is_below(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != ancestor:
        pid = parents[pid]
    return pid == ancestor


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
