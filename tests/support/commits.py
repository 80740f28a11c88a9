"""Committed folders as the tests of the storage make them, in this process and in others."""

import os
import subprocess
import sys
from pathlib import Path

from mnist_ray.errors import ConflictError
from mnist_ray.storage.storage import Storage, open_storage
from tests.support.warm_processes import call

REPOSITORY = Path(__file__).parents[2]
FILES = {"metrics.parquet": b"metrics of the run", "predictions-00000.parquet": b"\x00\x01\x02" * 1000}
DAY_S = 24 * 3600
COMMIT = """
from mnist_ray.storage.storage import open_storage

def commit(storage, files={"a.parquet": b"aaaa", "b.parquet": b"bb"}):
    pending = storage.pending_folder("evaluations/e1")
    stored = [pending.write(name, data) for name, data in files.items()]
    return pending.commit(stored, {"split": "test", "volatile": {"token": pending.token}})
"""


def python_output(script: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, timeout=120, check=True).stdout


def race(uri: str, contents: list[str]) -> dict[str, list[str]]:
    """Commits each content in a process of its own, all at once; returns what each commit and create gave, sorted."""
    return call(_race, uri, contents)


def _race(uri: str, contents: list[str]) -> dict[str, list[str]]:
    ready, go, results = os.pipe(), os.pipe(), os.pipe()
    racers = []
    for content in contents:
        racer = os.fork()
        if racer == 0:
            os.close(go[1])
            lines = _commit_and_create(uri, content.encode(), ready=ready[1], go=go[0])
            os.write(results[1], lines.encode())
            os._exit(0)
        racers.append(racer)
    for _ in racers:
        os.read(ready[0], 1)
    os.close(go[1])
    assert [os.waitpid(racer, 0)[1] for racer in racers] == [0] * len(racers)
    os.close(results[1])
    with open(results[0]) as file:
        answers = [line.split() for line in file]
    return {what: sorted(answer for name, answer in answers if name == what) for what in ("commit", "create")}


def _commit_and_create(uri: str, content: bytes, *, ready: int, go: int) -> str:
    storage = open_storage(uri)
    pending = storage.pending_folder("evaluations/e1")
    stored = [pending.write("a.parquet", content)]
    os.write(ready, b".")
    os.read(go, 1)
    try:
        committed = str(pending.commit(stored, {"split": "test", "volatile": {"token": pending.token}}))
    except ConflictError:
        committed = "conflict"
    created = storage.create_bytes("runs/r1/config.json", pending.token.encode())
    return f"commit {committed}\ncreate {created}\n"


def commit(storage: Storage, files: dict[str, bytes] = FILES, path: str = "evaluations/e1", **manifest: object) -> bool:
    pending = storage.pending_folder(path)
    stored = [pending.write(name, data) for name, data in files.items()]
    return pending.commit(stored, {"split": "test", **manifest})


def tree(storage: Storage) -> list[str]:
    """All files of a local storage, the hidden ones too."""
    return sorted(file.relative_to(storage.uri).as_posix() for file in Path(storage.uri).rglob("*") if file.is_file())
