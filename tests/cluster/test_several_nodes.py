"""Jobs on clusters that lose a node: each node is a raylet, ended with all its processes."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from mnist_ray.cli.main import run_command
from mnist_ray.cluster import trainer
from mnist_ray.cluster.train_job import TrainJob
from mnist_ray.config.placement import Placement
from mnist_ray.config.requirements import JOB_VARIABLE
from mnist_ray.config.variants import variant_config
from mnist_ray.jobs.train import train
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import MissingError, Storage, open_storage
from tests.support.grid_runs import train_without_ray, weights
from tests.support.processes import descendants
from tests.support.ray_head import RayHead, alive_nodes, end_machine, more_node, ray_head
from tests.support.ray_jobs import run_job
from tests.support.s3_fixtures import S3Server
from tests.support.stored_tables import without_times

ROOT = Path(__file__).parents[2]
GRID = ["--grid", "smoke", "--seeds", "2", "--epochs", "40", "--name", "g"]
TRAIN = ["--dataset", "digits", "--variant", "dropout_batchnorm", "--epochs", "12"]

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.fault, pytest.mark.series]


@pytest.fixture(scope="module")
def head(s3_server: S3Server) -> Iterator[RayHead]:
    """A head that works itself no more than the one of cluster.yaml does."""
    with ray_head(num_cpus=0, variables=s3_server.env) as running:
        yield running


@pytest.fixture(scope="module")
def lasting(head: RayHead) -> Iterator[int]:
    """A node that is never lost: the cluster has one CPU, and two while a test runs another node."""
    with more_node(head) as node:
        yield node


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mapping[str, torch.Tensor]]:
    storage = tmp_path_factory.mktemp("alone")
    train_without_ray(str(storage), "smoke", seeds="2", epochs=40)
    return weights(storage)


def submit(head: RayHead, *arguments: str) -> subprocess.Popen[str]:
    """Submits a job with the launcher, which follows it."""
    command = [sys.executable, "-m", "mnist_ray", *arguments, "--address", head.address]
    environment = {**head.environment, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(job: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, log = job.communicate(timeout=250)
    assert "Traceback" not in log, log
    return job.returncode, output, log


def at_work(nodes: list[int], title: bytes) -> bool:
    """Tells whether each node works on the job."""
    return all(descendants(node, title=title) for node in nodes)


def best_weights(storage: Storage, runs: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    return {run: load(storage.read_bytes(f"runs/{run}/best/model.safetensors")) for run in runs}


def assert_equal(found: Mapping[str, Mapping[str, torch.Tensor]], expected: Mapping[str, Mapping[str, torch.Tensor]]):
    assert found.keys() == expected.keys()
    for run, tensors in found.items():
        assert all(torch.equal(value, expected[run][name]) for name, value in tensors.items()), run


def test_a_grid_is_spread_over_nodes_and_loses_one(
    head: RayHead, lasting: int, s3_uri: str, expected: dict[str, Mapping[str, torch.Tensor]]
) -> None:
    storage = open_storage(s3_uri)
    with more_node(head) as lost:
        # Through the job API: its driver is in a folder that the nodes, on one machine, replace.
        job = submit(head, "tune", *GRID, "--stack-size", "2", "--storage", s3_uri)
        while not (
            at_work([lasting, lost], b"ray::ImplicitFunc")
            and any("epoch-0002" in file.path for file in storage.list_files("runs"))
        ):
            assert job.poll() is None, job.communicate()
        end_machine(lost)
        code, _, log = finish(job)
    assert code == 0, log
    assert "a worker was lost; its runs go on" in log
    assert "grid g: 8 runs, 8 trained now" in log
    assert storage.list_folders("runs") == sorted(expected)
    assert_equal(best_weights(storage, sorted(expected)), expected)


def test_an_evaluation_is_spread_over_nodes_and_loses_one(
    head: RayHead, lasting: int, s3_uri: str, tmp_path: Path
) -> None:
    storage = open_storage(s3_uri)
    train_without_ray(s3_uri, "smoke", seeds="2", epochs=1)
    evaluate = ["evaluate", "--grid", "g", "--dataset", "digits", "--shard-size", "3", "--no-report"]
    with more_node(head) as lost:
        loss = (lambda _: at_work([lasting, lost], b"ray::PoolWorker.work"), lambda _: end_machine(lost))
        done = run_job(head, *evaluate, "--storage", s3_uri, "--num-workers", "2", steps=[loss])
    assert done.code == 0, done.log
    (name,) = storage.list_folders("evaluations")
    # In one process, elsewhere: the same bytes.
    for file in storage.list_files("runs") + storage.list_files("grids"):
        (tmp_path / file.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.path).write_bytes(storage.read_bytes(file.path))
    assert run_command([*evaluate, "--storage", str(tmp_path)]) == 0
    files = json.loads((tmp_path / "evaluations" / name / "_manifest.json").read_text())["files"]
    assert len(files) > 100
    for file in files:
        assert without_times(storage.read_committed(f"evaluations/{name}", file["name"])) == without_times(
            (tmp_path / "evaluations" / name / file["stored_name"]).read_bytes()
        )
    query = "SELECT count(*), count(DISTINCT run) FROM predictions"
    assert run_command(["query", query, "--evaluation", name, "--storage", s3_uri]) == 0


@pytest.mark.usefixtures("lasting")
def test_a_run_that_loses_a_node_for_good_ends_with_7(head: RayHead, tmp_path: Path) -> None:
    train = ["train", *TRAIN, "--epochs", "500", "--num-workers", "2", "--max-failures", "2", "--name", "a"]
    train += ["--resource-timeout", "5", "--shared-storage", "--storage", str(tmp_path)]
    with more_node(head) as lost:
        checkpoint = tmp_path / "runs/a/checkpoints/epoch-0001/checkpoint.json"
        done = run_job(head, *train, steps=[(lambda _: checkpoint.exists(), lambda _: end_machine(lost))])
    assert done.code == 7, done.log
    assert done.log.splitlines()[-1] == (
        "mnist-ray: error: run 'a': needs 2 CPU and the cluster has 1, since 5 s (--resource-timeout): a node is "
        "gone and no other came; the same command goes on once there are enough"
    )


def test_a_run_that_lost_a_node_goes_on_when_another_comes(head: RayHead, lasting: int, tmp_path: Path) -> None:
    shared = ["--shared-storage", "--storage", str(tmp_path)]
    storage = open_storage(str(tmp_path))
    float64 = ["train", *TRAIN, "--precision", "float64"]
    assert run_command([*float64, "--name", "alone", "--storage", str(tmp_path)]) == 0
    train = [*float64, "--num-workers", "2", "--max-failures", "2", "--resource-timeout", "5", *shared]
    with more_node(head) as lost:
        whole = run_job(head, *train, "--name", "whole")
        assert whole.code == 0, whole.log
        loss = (
            lambda _: (
                at_work([lasting, lost], b"RayTrainWorker")
                and storage.exists("runs/a/checkpoints/epoch-0001/checkpoint.json")
            ),
            lambda _: end_machine(lost),
        )
        cut = run_job(head, *train, "--name", "a", steps=[loss])
    assert cut.code == 7, cut.log
    with more_node(head):
        done = run_job(head, *train, "--name", "a")
    assert done.code == 0, done.log
    assert "goes on after epoch" in done.log
    found = best_weights(storage, ["a", "whole", "alone"])
    for name, value in found["a"].items():
        assert torch.equal(value, found["whole"][name])
        torch.testing.assert_close(value, found["alone"][name], rtol=0, atol=1e-9)


def test_a_grid_whose_cluster_is_lost_goes_on_with_the_same_command_on_another(
    s3_server: S3Server, s3_uri: str, expected: dict[str, Mapping[str, torch.Tensor]]
) -> None:
    storage = open_storage(s3_uri)

    tune = ["tune", *GRID, "--storage", s3_uri]
    with ray_head(num_cpus=2, variables=s3_server.env) as first:
        code, output, log = finish(submit(first, *tune, "--no-wait"))
        assert code == 0, log
        assert output.startswith("tune-g-")
        while not any("epoch-0003" in file.path for file in storage.list_files("runs")):
            time.sleep(0.05)
        # The driver of the job is one of its processes.
        end_machine(first.pid)
        assert alive_nodes(first.address) == []
    assert storage.list_folders("grids") == ["g"]
    with ray_head(num_cpus=2, variables=s3_server.env) as second:
        code, _, log = finish(submit(second, *tune))
        assert code == 0, log
        assert "grid g: 8 runs" in log
    assert_equal(best_weights(storage, sorted(expected)), expected)


def workers_of_epochs(storage: Storage, run: str) -> list[int]:
    """How many workers trained each epoch of a run so far."""
    found = []
    for folder in storage.list_folders(f"runs/{run}/checkpoints"):
        with contextlib.suppress(MissingError):
            document = json.loads(storage.read_bytes(f"runs/{run}/checkpoints/{folder}/checkpoint.json"))
            found.append(document["lineage"]["num_workers"])
    return found


# Ray reads all settings of Ray Data, deprecated ones too, when it makes the controller.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.timeout(600)
def test_a_run_with_a_range_of_workers_takes_a_node_in_and_goes_on_without_it(
    head: RayHead, lasting: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mnist_dir: Path
) -> None:
    # Epochs of some seconds: a node takes ten to come, and the run ten more to take it in.
    large = {"dataset": "mnist", "train_limit": 10_000, "hidden_sizes": (1024, 512), "epochs": 20}
    config = variant_config("dropout", {**large, "precision": "float64", "optimizer": "sgd", "global_batch_size": 256})
    storage = open_storage(str(tmp_path))
    train(TrainJob(config, "alone", str(tmp_path), mnist_dir))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", head.gcs_address)
    monkeypatch.setenv(JOB_VARIABLE, "1")
    monkeypatch.setattr(trainer, "_RESIZE_INTERVAL_S", 1.0)
    job = TrainJob(
        config, "a", str(tmp_path), mnist_dir, num_workers=2, least_workers=1, max_failures=3,
        placement=Placement(shared_storage=True),
    )  # fmt: skip

    has_ended = threading.Event()

    def await_workers(count: int) -> None:
        while count not in workers_of_epochs(storage, "a"):
            assert not has_ended.is_set(), f"no epoch was trained by {count} workers"
            time.sleep(0.1)

    def come_and_go() -> None:
        await_workers(1)
        with more_node(head) as node:
            await_workers(2)
            end_machine(node)

    with ThreadPoolExecutor(1) as beside:
        events = beside.submit(come_and_go)
        try:
            outcome = train(job)
        finally:
            has_ended.set()
        events.result()
    assert len(outcome.history) == 20
    assert workers_of_epochs(storage, "a")[-1] == 1
    weights_of = best_weights(storage, ["a", "alone"])
    for name, value in weights_of["a"].items():
        torch.testing.assert_close(value, weights_of["alone"][name], rtol=0, atol=1e-9)
    expected = RunFolder(storage, "alone").history()
    assert [row.train_accuracy for row in outcome.history] == [row.train_accuracy for row in expected]
