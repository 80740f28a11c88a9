"""A cluster without the CPUs, GPUs or disks that a job needs: it waits, or one line says what is missing."""

import contextlib
import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mnist_ray.cluster.resources import Needs
from mnist_ray.cluster.worker_pool import results_of_workers
from mnist_ray.config.placement import Placement
from mnist_ray.config.requirements import JOB_VARIABLE
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing
from tests.support.ray_head import RayHead, more_node
from tests.support.ray_jobs import run_job

TRAIN = ["train", "--dataset", "digits", "--epochs", "1", "--name", "b"]
TUNE = ["tune", "--grid", "smoke", "--name", "g"]
SHARED = Placement(shared_storage=True)

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_job_waits_for_a_node_and_a_cluster_of_several_is_refused_a_local_folder(
    shared_head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = Needs("the job", open_storage(str(tmp_path)), num_workers=3)
    log = io.StringIO()

    def add_node_once_the_job_waits() -> None:
        while "waiting" not in log.getvalue():
            time.sleep(0.01)
        nodes.enter_context(more_node(shared_head))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", shared_head.gcs_address)
    monkeypatch.setenv(JOB_VARIABLE, "1")
    with contextlib.ExitStack() as nodes:
        with ThreadPoolExecutor(1) as beside, contextlib.redirect_stderr(log):
            added = beside.submit(add_node_once_the_job_waits)
            with results_of_workers(
                lambda: lambda item: [item], [(0, 7)], needs, Placement(shared_storage=True)
            ) as each:
                assert list(each) == [7]
        added.result()
        assert without_doing(log.getvalue()) == "waiting up to 600 s for 3 CPU: the cluster has 2\n"

        for command in (TUNE, [*TRAIN, "--num-workers", "2"]):
            refused = run_job(shared_head, *command, "--storage", str(tmp_path))
            assert refused.code == 4
            assert refused.log.splitlines()[-1] == (
                f"mnist-ray: error: storage='{tmp_path}': a local folder, and the cluster has 2 nodes, each with disks "
                "of its own; use s3://bucket/prefix, or --shared-storage if this folder is the same on all of them"
            )


def test_a_job_whose_cpus_do_not_come_ends_with_5_and_leaves_the_name_free(
    shared_head: RayHead, tmp_path: Path
) -> None:
    refused = run_job(
        shared_head, *TRAIN, "--num-workers", "900", "--resource-timeout", "1", "--storage", str(tmp_path)
    )
    assert refused.code == 5
    assert without_doing(refused.log).splitlines()[-2:] == [
        "waiting up to 1 s for 900 CPU: the cluster has 2",
        "mnist-ray: error: num_workers=900: needs a CPU for each, the cluster has 2; use --num-workers 2 or less",
    ]
    assert not (tmp_path / "runs").exists()


# Another job, which uses both CPUs until its standard input is closed.
BUSY = """
import sys
import ray
from ray.util.placement_group import placement_group
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
ray.get(placement_group([{"CPU": 1}] * 2).ready())
print("busy", flush=True)
sys.stdin.read()
"""


def test_a_job_says_that_it_waits_for_cpus_that_other_jobs_use(shared_head: RayHead, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUSY, shared_head.gcs_address]
    with subprocess.Popen(
        command, env=shared_head.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "busy\n"
        line = "waiting for 1 CPU: 1 other job uses 2 of the cluster's 2; this one starts when enough are free\n"
        done = run_job(
            shared_head, *TRAIN, "--storage", str(tmp_path),
            steps=[(lambda log: line in log, lambda _: other.stdin.close())],
        )  # fmt: skip
        assert done.code == 0, done.log
    # Nothing is said when there is nothing to wait for.
    again = run_job(shared_head, *TRAIN[:-1], "c", "--storage", str(tmp_path))
    assert again.code == 0
    assert "waiting" not in again.log


def test_a_gpu_that_is_asked_for_and_not_there_is_named(shared_head: RayHead, tmp_path: Path) -> None:
    done = run_job(shared_head, *TRAIN, "--use-gpu", "--resource-timeout", "0", "--storage", str(tmp_path))
    assert done.code == 5
    assert done.log.splitlines()[-1] == (
        "mnist-ray: error: num_workers=1: needs a GPU for each, the cluster has 0; leave out --device gpu, or add "
        "nodes with a GPU"
    )
