"""Submitting a job: whether the cluster can take it, and waiting for a head that starts."""

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cli.submission import remote_storage
from mnist_ray.errors import ClusterError, StorageError
from mnist_ray.submission import job_api
from mnist_ray.submission.job_api import JobClient
from mnist_ray.submission.submit import check_resources, check_version, submit
from tests.support.dashboard import DEAD, FIXED, GROWING, NODES, TWO_CPUS, VERSION_HERE, Dashboard, cluster


@pytest.mark.parametrize(
    ("needed", "missing"),
    [
        ({"CPU": 8}, "the job needs 8 CPU and the cluster has 4"),
        ({"CPU": 2, "GPU": 1}, "the job needs 1 GPU and the cluster has 0"),
    ],
)
def test_a_job_too_large_for_a_fixed_cluster_is_refused_with_what_there_is(
    needed: dict[str, float], missing: str
) -> None:
    with cluster(f"{TWO_CPUS}, {TWO_CPUS}, {DEAD}", FIXED) as server, pytest.raises(ClusterError) as caught:
        check_resources(JobClient(server.address), needed)
    assert str(caught.value) == f"{server.address}: {missing}; ask for less or add nodes"


def test_a_job_that_fills_the_cluster_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with cluster(f"{TWO_CPUS}, {TWO_CPUS}", FIXED) as server:
        check_resources(JobClient(server.address), {"CPU": 4})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("status", [GROWING, '{"data": {"clusterStatus": null}}'])
def test_a_cluster_that_may_grow_is_not_refused(capsys: pytest.CaptureFixture[str], status: str) -> None:
    with cluster(TWO_CPUS, status) as server:
        check_resources(JobClient(server.address), {"GPU": 1})
    assert capsys.readouterr().err == (
        f"note: {server.address}: the job needs 1 GPU and the cluster has 0; "
        "the job waits until the cluster has grown (--resource-timeout)\n"
    )


NO_AGENT = "No available agent to submit job, please try again later."


class _StartingHead(Dashboard):
    """A head that takes a submission only after some that it can't take yet; jobs are what it has taken."""

    def __init__(self, num_refusals: int) -> None:
        super().__init__({**VERSION_HERE, "/api/jobs/": (200, "[]"), "/api/v0/nodes": (200, NODES % TWO_CPUS)})
        server, self.num_posts = self, 0

        def do_post(handler: BaseHTTPRequestHandler) -> None:
            server.num_posts += 1
            is_ready = server.num_posts > num_refusals
            text = '{"job_id": "a", "submission_id": "a"}' if is_ready else NO_AGENT
            handler.rfile.read(int(handler.headers["Content-Length"]))
            handler.send_response(200 if is_ready else 500)
            handler.send_header("Content-Length", str(len(text)))
            handler.end_headers()
            handler.wfile.write(text.encode())

        def do_get(
            handler: BaseHTTPRequestHandler, usual: Callable[[Any], None] = self.http.RequestHandlerClass.do_GET
        ):
            if handler.path.startswith("/api/packages/"):
                handler.send_response(200)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
            else:
                usual(handler)

        self.http.RequestHandlerClass.do_POST = do_post
        self.http.RequestHandlerClass.do_GET = do_get


def submit_to(server: Dashboard, folder: Path) -> str:
    client = JobClient(server.address, ray_version=version("ray"))
    options: dict[str, Any] = {"arguments": [], "working_dir": folder, "name": "a", "metadata": {"asked": "1"}}
    return submit(client, script="train", **options).job_id


def test_a_head_that_has_just_started_is_asked_again_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (job_api.STARTING_S, job_api.SAID_AFTER_S) == (30.0, 2.0)
    monkeypatch.setattr(job_api, "SAID_AFTER_S", 0.0)
    monkeypatch.setattr(job_api, "_PAUSE_S", 0.01)
    with _StartingHead(num_refusals=3) as server:
        assert submit_to(server, tmp_path) == "a"
    assert server.num_posts == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {server.address}: refused the job: ")
    assert line.endswith(f"{NO_AGENT}. Trying again for 30 s: the cluster may have just started")


def test_a_head_that_never_gets_ready_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_api, "STARTING_S", 0.1)
    monkeypatch.setattr(job_api, "_PAUSE_S", 0.01)
    with _StartingHead(num_refusals=10_000) as server, pytest.raises(ClusterError) as caught:
        submit_to(server, tmp_path)
    assert caught.value.exit_code == 5
    assert str(caught.value).endswith(
        f"{NO_AGENT}. Tried again for 0.1 s: see dashboard_agent.log on the head, or try again later"
    )


def test_other_requests_wait_for_the_agent_of_a_head_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_api, "_PAUSE_S", 0.01)
    text = "Traceback\nTimeoutError: Failed to get head node agent within 10 seconds. The last exception is x\n"
    with Dashboard({"/api/jobs/a/logs": [(500, text), (500, text), (200, '{"logs": "x"}')]}) as server:
        assert job_api.job_logs(JobClient(server.address), "a") == "x"
    monkeypatch.setattr(job_api, "STARTING_S", 0.1)
    with (
        Dashboard({"/api/jobs/a/logs": (500, text)}) as server,
        pytest.raises(ClusterError, match="Tried again for"),
    ):
        job_api.job_logs(JobClient(server.address), "a")
    with (
        Dashboard({"/api/jobs/a/logs": (500, "Traceback\nValueError: x")}) as server,
        pytest.raises(ClusterError),
    ):
        job_api.job_logs(JobClient(server.address), "a")
    assert len(server.requests) == 1


@pytest.mark.parametrize("there", ["2.56.0", "3.0.0", "nightly"])
def test_a_cluster_with_another_ray_is_refused(there: str) -> None:
    here = version("ray")
    with pytest.raises(ClusterError) as caught:
        check_version(JobClient("http://head:8265", ray_version=there))
    assert str(caught.value) == (
        f"http://head:8265: has Ray {there} and this machine has {here}; "
        f"use an image with Ray {here}, or install ray=={there} here"
    )
    major, minor, _ = here.split(".")
    check_version(JobClient("http://head:8265", ray_version=f"{major}.{minor}.99"))


def test_a_storage_has_one_form_and_so_one_job_however_it_is_written() -> None:
    assert remote_storage("S3://bucket/results/") == remote_storage("s3://bucket/results") == "s3://bucket/results"
    assert remote_storage("file:///results/") == remote_storage("/results") == "/results"


def test_a_local_folder_is_no_storage_for_a_cluster_of_several_nodes(tmp_path: Path) -> None:
    with cluster(f"{TWO_CPUS}, {TWO_CPUS}, {DEAD}", FIXED) as server, pytest.raises(StorageError) as caught:
        submit(
            JobClient(server.address, ray_version=version("ray")),
            script="train",
            arguments=[],
            working_dir=tmp_path,
            name="train-a",
            metadata={"asked": "1"},
            local_storage="/results",
        )
    assert str(caught.value) == (
        "storage='/results': a local folder, and the cluster has 2 nodes, each with disks of its own; use "
        "s3://bucket/prefix, or --shared-storage if this folder is the same on all of them"
    )
