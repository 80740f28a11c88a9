"""Committed folders as the tests of the storage make them, in this process and in others."""

import subprocess
import sys
from pathlib import Path

from mnist_ray.storage.storage import Storage

REPOSITORY = Path(__file__).parents[2]
FILES = {"metrics.parquet": b"metrics of the run", "predictions-00000.parquet": b"\x00\x01\x02" * 1000}
DAY_S = 24 * 3600
COMMIT = """
from mnist_ray.errors import ConflictError
from mnist_ray.storage.storage import open_storage

def commit(storage, files={"a.parquet": b"aaaa", "b.parquet": b"bb"}):
    pending = storage.pending_folder("evaluations/e1")
    stored = [pending.write(name, data) for name, data in files.items()]
    return pending.commit(stored, {"split": "test", "volatile": {"token": pending.token}})
"""


RACER = """
import sys

storage = open_storage(sys.argv[1])
pending = storage.pending_folder("evaluations/e1")
stored = [pending.write("a.parquet", sys.argv[2].encode())]
print("ready", flush=True)
sys.stdin.readline()
try:
    print("commit", pending.commit(stored, {"split": "test", "volatile": {"token": pending.token}}))
except ConflictError:
    print("commit", "conflict")
print("create", storage.create_bytes("runs/r1/config.json", pending.token.encode()))
"""


def run_python(script: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def python_output(script: str, *arguments: str) -> str:
    process = run_python(script, *arguments)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return output


def race(uri: str, contents: list[str]) -> dict[str, list[str]]:
    """What each of the processes got from its commit and its create, sorted."""
    racers = [run_python(COMMIT + RACER, uri, content) for content in contents]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * len(racers)
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    lines = [line.split() for racer in racers for line in racer.communicate(timeout=120)[0].splitlines()]
    assert [racer.returncode for racer in racers] == [0] * len(racers)
    return {what: sorted(line[1] for line in lines if line[0] == what) for what in ("commit", "create")}


def commit(storage: Storage, files: dict[str, bytes] = FILES, path: str = "evaluations/e1", **manifest: object) -> bool:
    pending = storage.pending_folder(path)
    stored = [pending.write(name, data) for name, data in files.items()]
    return pending.commit(stored, {"split": "test", **manifest})


def tree(storage: Storage) -> list[str]:
    """All files of a local storage, the hidden ones too."""
    return sorted(file.relative_to(storage.uri).as_posix() for file in Path(storage.uri).rglob("*") if file.is_file())
