"""A small real storage with a result of each kind, and commands on copies of it that are killed in the middle."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnist_ray.config.settings import TrainConfig
from mnist_ray.results.listing import run_rows
from mnist_ray.results.paths import report_path
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.training.data import load_data
from mnist_ray.training.train_stack import train_stack
from tests.support.commits import REPOSITORY
from tests.support.report_evaluations import CPU, evaluate_grid

# Runs a command in one storage after the other; in each the process ends by SIGKILL just before the n-th change of the
# disk, or the n-th request that changes S3, with a larger n each time. Prints how many were, and the last exit code.
_KILLED = """
import json, os, signal, sys

CHANGES = ["os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir"]

def is_change(event, arguments):
    if event != "http.client.send":
        return not on_s3 and event in CHANGES
    return isinstance(arguments[1], bytes) and arguments[1].startswith((b"PUT ", b"POST ", b"DELETE "))

def kill_at(n):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        # Ending the process is an audited call itself.
        if is_change(event, arguments):
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

uris, arguments, step = map(json.loads, sys.argv[1:])
on_s3 = uris[0].startswith("s3://")
import boto3
from mnist_ray.cli.main import run_command
from mnist_ray.results import removal

for place, uri in enumerate(uris):
    child = os.fork()
    if child == 0:
        kill_at(1 + place * step)
        os.dup2(2, 1)
        os._exit(run_command([argument.replace("URI", uri) for argument in arguments]))
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        print(place, os.waitstatus_to_exitcode(status))
        break
"""


def make_results(uri: str) -> str:
    """Makes the grid g of two runs, an evaluation of it with a report, and a prediction; returns the evaluation."""
    evaluation = evaluate_grid(
        uri, {"dropout": 0.0, "batch_norm": False, "hidden_sizes": [8], "optimizer": ["sgd", "adamw"]}, seeds="1"
    )
    storage = open_storage(uri)
    storage.write_bytes(report_path(evaluation, "plots", "accuracy.svg"), b"<svg/>")
    storage.write_bytes(report_path(evaluation, "report.html"), b"<html/>")
    pending = storage.pending_folder("predictions/p")
    part = pending.write("image_predictions/part-00000.parquet", b"PAR1")
    pending.commit([part], {"run": storage.list_folders("runs")[0]})
    return evaluation


def train_run(uri: str, name: str) -> None:
    """Trains a run of its own."""
    from mnist_ray.grids.grid import GridRun

    config = TrainConfig(dataset="digits", hidden_sizes=(8,), epochs=2, batch_norm=False)
    run = GridRun(name, config)
    list(train_stack([run], load_data(config, Path("unused"), CPU), storage=open_storage(uri), device=CPU))


def listed_runs(storage: Storage) -> list[dict[str, Any]]:
    """Lists the runs without place, size and grid: each may be copied, pruned, or removed without its grid."""
    return [
        {name: value for name, value in row.items() if name not in ("uri", "bytes", "grid")}
        for row in run_rows(storage)
    ]


def put(template: str, uri: str) -> Storage:
    """Copies all files to another place, as they are."""
    storage = open_storage(uri)
    if storage.is_local:
        shutil.copytree(template, uri)
    else:
        for entry in open_storage(template).list_files():
            storage.write_bytes(entry.path, Path(template, entry.path).read_bytes())
    return storage


def killed_everywhere(uris: Sequence[str], arguments: Sequence[str], *, step: int) -> tuple[int, int]:
    """Runs a command in each storage until it isn't killed; returns how often it was, and then its exit code.

    Args:
      uris: in each, the process is killed `step` changes later than in the one before, in the first before any.
      arguments: of the command; URI stands for the storage.
      step: in changes of the disk, or requests that change S3.
    """
    values = [json.dumps(value) for value in (uris, arguments, step)]
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, *values], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, timeout=280
    )
    killed, code = map(int, done.stdout.split())
    return killed, code
