"""Measures time and memory of launcher commands, each in its own process."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Peaks and CPU times never fall, so sampling can only miss the last moments of a process.
LOOK_EVERY_S = 0.1
# Runs the launcher, then saves the kernel's status of its process.
MEASURED = """
import pathlib, sys
from mnist_ray.cli.main import run_command
code = run_command(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(pathlib.Path("/proc/self/status").read_text())
sys.exit(code)
"""


@dataclass(frozen=True)
class Command:
    """The cost and output of a launcher command.

    Attributes:
      seconds: wall time of its process.
      cpu_seconds: CPU time of its process and all descendants, including Ray's own processes.
      peak_bytes: peak resident memory of its process.
      worker_peaks: peak resident memory of each Ray worker that did any work, largest first.
      said: its JSON output.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    worker_peaks: tuple[int, ...]
    said: Mapping[str, Any]


def run_measured(*arguments: str) -> Command:
    """Runs the launcher with --json in its own process."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "stderr"), "w+") as errors:
        status = Path(folder, "status")
        command = [sys.executable, "-c", MEASURED, str(status), *arguments, "--json"]
        started = time.perf_counter()
        # umask: Ray writes a token into the home folder.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True, umask=0o077
        )
        with _Watch(process.pid) as watch:
            said, _ = process.communicate()
        seconds = time.perf_counter() - started
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{errors.read()[-3000:]}\nmnist-ray {arguments[0]}: exit code {process.returncode}")
        peak = _peak_bytes(status.read_text())
    cpu_seconds = sum(watch.cpu_seconds.values())
    cost = f"{seconds:.1f} s, {cpu_seconds:.1f} s of CPU, at most {peak / 2**20:,.0f} MiB"
    print(f"{arguments[0]}: {cost}", file=sys.stderr)
    return Command(seconds, cpu_seconds, peak, tuple(sorted(watch.peaks.values(), reverse=True)), json.loads(said))


def environment() -> dict[str, str]:
    """Returns the processes' environment: no cluster, one thread, no GPU."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Child:
    """A benchmark's child process that answers JSON lines; started and warmed up before the timing."""

    def __init__(self, script: str, *arguments: str) -> None:
        """Starts `python SCRIPT ARGUMENTS`, with a GPU if there is one."""
        self._process = subprocess.Popen(
            [sys.executable, script, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, question: Any) -> None:
        """Sends a JSON value without waiting."""
        assert self._process.stdin
        print(json.dumps(question), file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        """Waits for a JSON value.

        Raises:
          SystemExit: the process ended; its error is on stderr.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process of the benchmark ended with exit code {self._process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.communicate()


class _Watch:
    """Samples a process and its descendants.

    Attributes:
      cpu_seconds: CPU time by process.
      peaks: peak resident memory of Ray workers in bytes, by process.
    """

    def __init__(self, root: int) -> None:
        self.cpu_seconds: dict[int, float] = {}
        self.peaks: dict[int, int] = {}
        self._root = root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            parents, cpu_seconds = _processes()
            for pid in parents:
                # Keep known processes: while Ray shuts down, its processes lose their parents.
                if pid not in self.cpu_seconds and self._root not in (pid, *_ancestors(pid, parents)):
                    continue
                self.cpu_seconds[pid] = cpu_seconds[pid]
                # Keep known workers: an idle worker loses its task's name.
                if pid in self.peaks or _is_worker(pid):
                    self.peaks[pid] = max(self.peaks.get(pid, 0), _peak_bytes(_text(pid, "status")))


def _processes() -> tuple[dict[int, int], dict[int, float]]:
    """Returns the parent and the CPU time in seconds of each process."""
    parents, cpu_seconds = {}, {}
    for entry in Path("/proc").iterdir():
        # The name in brackets may contain anything, even spaces.
        if entry.name.isdigit() and (stat := _text(int(entry.name), "stat")):
            facts = stat.rpartition(")")[2].split()
            parents[int(entry.name)] = int(facts[1])
            cpu_seconds[int(entry.name)] = (int(facts[11]) + int(facts[12])) / os.sysconf("SC_CLK_TCK")
    return parents, cpu_seconds


def _ancestors(pid: int, parents: Mapping[int, int]) -> list[int]:
    ancestors: list[int] = []
    while (pid := parents.get(pid, 0)) and pid not in ancestors:
        ancestors.append(pid)
    return ancestors


def _is_worker(pid: int) -> bool:
    """Tells whether a process is a busy Ray worker: Ray names its workers after their tasks."""
    name = _text(pid, "cmdline")
    return name.startswith("ray::") and not name.startswith("ray::IDLE")


def _text(pid: int, name: str) -> str:
    """Returns a process's file in /proc, or an empty text if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _peak_bytes(status: str) -> int:
    facts = dict(line.partition(":")[::2] for line in status.splitlines())
    return int(facts["VmHWM"].split()[0]) * 1024 if "VmHWM" in facts else 0
