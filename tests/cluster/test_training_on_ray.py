"""The training and evaluation jobs on a real Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb
import pytest
import torch
from safetensors.torch import load_file

from tests.support.doing_lines import without_doing
from tests.support.processes import descendants, wait_until_gone, with_variable, written_so_far
from tests.support.ray_head import RayHead
from tests.support.ray_jobs import Step, run_here, run_job
from tests.support.stored_tables import without_times

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SETTINGS = ["--dataset", "digits", "--variant", "dropout_batchnorm", "--seed", "3"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def mnist_ray(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mnist_ray", *arguments]


def train_here(storage: Path, name: str, *more: str) -> None:
    """Trains a run with one worker, in this process."""
    assert run_here("train", *SETTINGS, "--storage", str(storage), "--name", name, *more).code == 0


def train_workers_under(pid: int) -> list[int]:
    """Returns the pids of the Ray Train workers among a process's descendants."""
    return descendants(pid, title=b"RayTrainWorker")


def weights(storage: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(storage / f"runs/{name}/best/model.safetensors")


@pytest.mark.fault
@pytest.mark.parametrize(
    ("killed", "again"),
    [({1: min}, False), pytest.param({1: min, 3: max}, True, marks=pytest.mark.series)],
    ids=["one rank", "each rank, and reproduced"],
)
def test_two_ray_workers_give_the_result_of_one_process_and_killing_them_changes_no_bit(
    shared_head: RayHead,
    tmp_path: Path,
    killed: dict[int, Callable[[list[int]], int]],
    again: bool,
) -> None:
    float64 = ["--epochs", "6", "--precision", "float64"]
    train_here(tmp_path, "one", *float64)

    def workers_after(epoch: int, _: str) -> list[int]:
        written = (tmp_path / f"runs/two/checkpoints/epoch-{epoch:04d}/checkpoint.json").exists()
        return train_workers_under(shared_head.pid) if written else []

    def kill(which: Callable[[list[int]], int], workers: list[int]) -> None:
        os.kill(which(workers), signal.SIGKILL)

    train = ["train", *SETTINGS, *float64, "--num-workers", "2", "--max-failures", "2", "--storage", str(tmp_path)]
    steps: list[Step] = [(partial(workers_after, epoch), partial(kill, which)) for epoch, which in killed.items()]
    done = run_job(shared_head, *train, "--name", "two", steps=steps)
    assert done.code == 0, done.log
    # Started anew from the first epoch, it would say so twice.
    assert all(f"epoch {epoch}/6" in done.log for epoch in range(1, 7))
    assert done.log.count("epoch 1/6") == 1
    one, two = weights(tmp_path, "one"), weights(tmp_path, "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-9)
    lineage = json.loads((tmp_path / "runs/two/best/checkpoint.json").read_text())["lineage"]
    assert lineage["num_workers"] == 2
    assert lineage["command_line"].startswith("mnist-ray train --dataset digits")

    if again:
        # Once more with two workers, none of which is killed: the same bits.
        done = run_job(shared_head, "reproduce", "two", "--storage", str(tmp_path), "--json")
        assert done.code == 0, done.log
        assert json.loads(done.output)["result"] == "equal"
        assert len(without_doing(done.log).splitlines()) == 8, done.log


@pytest.mark.fault
@pytest.mark.series
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_workers_with_its_code_and_one_line(tmp_path: Path, number: int, code: int) -> None:
    arguments = ["train", *SETTINGS, "--epochs", "500", "--num-workers", "2", "--storage", str(tmp_path), "--name", "a"]
    with subprocess.Popen(mnist_ray(*arguments), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "epoch 1/500" not in process.stderr.readline():
            assert process.poll() is None
        worker, *_ = train_workers_under(process.pid)
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(timeout=100) == code, rest
    assert sum("the same command goes on" in line for line in rest.splitlines()) == 1, rest
    assert "Traceback" not in rest
    # It was told to end; on a busy machine its end may take a moment longer than the command's.
    wait_until_gone(lambda: [worker] if Path(f"/proc/{worker}").exists() else [])


@pytest.mark.fault
@pytest.mark.parametrize(
    ("number", "code", "num_workers"),
    [
        (signal.SIGTERM, 143, "1"),
        pytest.param(signal.SIGINT, 130, "1", marks=pytest.mark.series),
        pytest.param(signal.SIGINT, 130, "2", marks=pytest.mark.series),
        pytest.param(signal.SIGTERM, 143, "2", marks=pytest.mark.series),
    ],
)
def test_a_signal_ends_an_evaluation_and_leaves_nothing_of_it(
    tmp_path: Path, number: int, code: int, num_workers: str
) -> None:
    train_here(tmp_path, "a", "--epochs", "1")
    arguments = ["evaluate", "--run", "a", "--dataset", "digits", "--shard-size", "1", "--num-workers", num_workers]
    arguments += ["--storage", str(tmp_path)]
    with subprocess.Popen(mnist_ray(*arguments), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        while not written_so_far(tmp_path, ".staging/*/predictions/part-*.parquet"):
            assert process.poll() is None
            time.sleep(0.001)
        workers = descendants(process.pid, title=b"ray::")
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(timeout=100) == code, said
    word = {130: "stopped", 143: "terminated"}[code]
    assert without_doing(said) == (
        "dataset digits: 10 classes (0, 1, 2, 3, 4 and 5 more); 355 test images\n"
        f"mnist-ray: {word}; the same command starts again\n"
    )
    assert bool(workers) == (num_workers == "2")
    wait_until_gone(lambda: [pid for pid in workers if Path(f"/proc/{pid}").exists()])
    for left in ("evaluations", "reports", ".staging/*"):
        assert list(tmp_path.glob(left)) == []


@pytest.mark.fault
@pytest.mark.series
def test_ctrl_c_while_ray_starts_leaves_no_process_and_no_file_behind(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**ENVIRONMENT, "TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"}
    arguments = ["train", *SETTINGS, "--epochs", "500", "--num-workers", "2", "--storage", str(tmp_path), "--name", "a"]
    with subprocess.Popen(mnist_ray(*arguments), env=environment, stderr=subprocess.PIPE, text=True) as process:
        # It starts its agents, whose parent it is, some time before ray.init returns.
        while not descendants(process.pid, title=b"raylet/raylet"):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=100) == 130
        assert process.stderr is not None
        assert without_doing(process.stderr.read()) == "mnist-ray: stopped; the same command goes on\n"
    # Of all processes that inherited the variable, whoever their parents are.
    wait_until_gone(lambda: with_variable(f"TMPDIR={temporary}"))
    assert [path.name for path in temporary.iterdir() if path.name.startswith("mnist-ray")] == []
    assert list(tmp_path.glob(".staging/*")) == []


@pytest.mark.fault
@pytest.mark.series
@pytest.mark.parametrize("moment", ["start", "training"])
def test_ctrl_c_again_and_again_leaves_no_process_and_no_folder_behind(tmp_path: Path, moment: str) -> None:
    with tempfile.TemporaryDirectory(prefix="rc", dir="/tmp") as temporary:
        environment = {**ENVIRONMENT, "TMPDIR": temporary, "RAY_TMPDIR": temporary}
        arguments = ["train", *SETTINGS, "--epochs", "500", "--num-workers", "2", "--storage", str(tmp_path)]
        command = mnist_ray(*arguments, "--name", "a")
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            if moment == "start":
                while not descendants(process.pid, title=b"raylet/raylet"):
                    assert process.poll() is None
                    time.sleep(0.01)
            else:
                while "epoch 1/500" not in process.stderr.readline():
                    assert process.poll() is None
            # Through all that the first sets going.
            while process.poll() is None:
                process.send_signal(signal.SIGINT)
                time.sleep(0.02)
            said = process.stderr.read()
        assert process.returncode == 130, said
        assert said.splitlines()[-1] == "mnist-ray: stopped; the same command goes on"
        assert "Traceback" not in said
        wait_until_gone(lambda: with_variable(f"TMPDIR={temporary}"))
        assert [path.name for path in Path(temporary).iterdir() if path.name.startswith(("ray-", "mnist-ray"))] == []


def test_an_error_that_rank_0_alone_meets_ends_all_workers(shared_head: RayHead, tmp_path: Path) -> None:
    train_here(tmp_path, "a", "--epochs", "2")
    shutil.rmtree(tmp_path / "runs/a/best")
    for weights_file in tmp_path.glob("runs/a/checkpoints/*/model.safetensors"):
        weights_file.write_bytes(b"damaged")
    train = ["train", *SETTINGS, "--num-workers", "2", "--storage", str(tmp_path)]
    damaged = run_job(shared_head, *train, "--name", "a", "--epochs", "2")
    assert damaged.code == 3, damaged.log
    assert "SHA-256 differs" in damaged.log.splitlines()[-1]


@pytest.mark.series
def test_a_checkpoint_that_rank_0_alone_cannot_write_ends_all_workers(shared_head: RayHead, tmp_path: Path) -> None:
    train_here(tmp_path, "b", "--epochs", "1")
    (tmp_path / "runs/b/checkpoints/epoch-0002").write_bytes(b"")
    train = ["train", *SETTINGS, "--num-workers", "2", "--storage", str(tmp_path)]
    unwritable = run_job(shared_head, *train, "--name", "b", "--epochs", "3")
    assert unwritable.code == 4, unwritable.log
    assert "can't be written" in unwritable.log.splitlines()[-1]


@pytest.mark.fault
def test_the_evaluation_has_each_example_once_and_the_same_bytes_with_any_workers_one_of_them_killed(
    shared_head: RayHead, tmp_path: Path
) -> None:
    for name, rate in {"a": "1e-3", "b": "2e-3"}.items():
        train_here(tmp_path, name, "--epochs", "1", "--learning-rate", rate)
    evaluate = ["evaluate", "--run", "a", "--run", "b", "--dataset", "digits", "--shard-size", "1", "--no-report"]
    evaluate += ["--storage", str(tmp_path), "--json"]

    def at_work(_: str) -> list[int]:
        begun = written_so_far(tmp_path, ".staging/*/predictions/part-*.parquet")
        # Between two shards a worker has another title.
        return descendants(shared_head.pid, title=b"ray::PoolWorker.work") if begun else []

    loss: Step = (at_work, lambda workers: os.kill(workers[0], signal.SIGKILL))
    files = {}
    for workers in ("2", "1"):
        # With one worker: this process.
        run = partial(run_job, shared_head, steps=[loss]) if workers == "2" else run_here
        done = run(*evaluate, "--num-workers", workers)
        assert done.code == 0, done.log
        folder = Path(json.loads(done.output)["uri"])
        files[workers] = {
            str(path.relative_to(folder)): without_times(path.read_bytes()) for path in folder.glob("*/*.parquet")
        }
        counts = duckdb.sql(
            "SELECT run, count(*), count(DISTINCT example_index), min(example_index), max(example_index) "
            f"FROM '{folder}/predictions/part-*.parquet' GROUP BY run ORDER BY run"
        )
        assert counts.fetchall() == [("a", 355, 355, 0, 354), ("b", 355, 355, 0, 354)]
        folder.rename(tmp_path / f"moved-{workers}")
    assert len([name for name in files["1"] if name.startswith("predictions")]) == 355
    assert files["1"] == files["2"]
