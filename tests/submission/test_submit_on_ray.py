import contextlib
import io
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from mnist_ray.errors import ClusterError, ConfigError, ConflictError
from mnist_ray.submission import submit as submission
from mnist_ray.submission.connect import connect
from mnist_ray.submission.follow import follow
from mnist_ray.submission.job_api import JobClient, job_logs, job_status, job_stop, jobs_list
from mnist_ray.submission.submit import stage_working_dir
from tests.support.ray_head import RayHead

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ECHO = """
import json, os, sys, time
import mnist_ray
print("ARGUMENTS " + json.dumps(sys.argv[2:]))
print("ENVIRONMENT " + json.dumps({k: v for k, v in os.environ.items() if k.startswith(("AWS_", "OMP_"))}))
print("FILES " + json.dumps(sorted(os.listdir("."))))
mode = sys.argv[1]
if mode == "lines":
    for number in range(int(sys.argv[3])):
        print(f"line {number}")
    sys.exit(int(sys.argv[2]))
if mode == "slow-lines":
    for number in range(30):
        print(f"line {number}")
        time.sleep(0.1)
if mode == "sleep":
    time.sleep(600)
if mode == "exit":
    sys.exit(int(sys.argv[2]))
"""
AWKWARD = ["with space", "quote'\"", "; exit 9", "$(exit 9)", "`exit 9`", "two\nlines", "", "*", "ä", "--x=\\n"]


@pytest.fixture
def client(shared_head: RayHead) -> JobClient:
    return connect(shared_head.address, environ=shared_head.environment)


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("checkout")
    for name, text in {"mnist_ray/__init__.py": "", "jobs/echo.py": ECHO, ".env": "KEY=x"}.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    with stage_working_dir("epochs: 3\n", package=root / "mnist_ray") as folder:
        yield folder


def _lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("line ")]


def _follow(client: JobClient, job_id: str) -> tuple[int, str]:
    output = io.StringIO()
    return follow(client, job_id, output=output), output.getvalue()


def submit(client: JobClient, *, script: str = "echo", **options: Any) -> str:
    name = options.pop("name", f"job-{secrets.token_hex(4)}")
    metadata = {"asked": "1", **options.pop("metadata", {})}
    return submission.submit(client, script=script, name=name, metadata=metadata, **options).job_id


def test_arguments_arrive_as_they_are_and_nothing_but_the_code_and_the_config_travels(
    client: JobClient, working_dir: Path
) -> None:
    environ = {"AWS_REGION": "eu-central-1", "AWS_SECRET_ACCESS_KEY": "secret"}
    job_id = submit(
        client,
        script="echo",
        arguments=["show", *AWKWARD],
        working_dir=working_dir,
        environ=environ,
        metadata={"a": "b"},
    )
    exit_code, log = _follow(client, job_id)
    assert exit_code == 0
    said = {line.partition(" ")[0]: line.partition(" ")[2] for line in log.splitlines()}
    assert json.loads(said["ARGUMENTS"]) == AWKWARD
    assert said["ENVIRONMENT"] == '{"AWS_REGION": "eu-central-1", "OMP_NUM_THREADS": "1"}'
    assert said["FILES"] == '["job.yaml", "jobs", "mnist_ray"]'
    job = job_status(client, job_id)
    assert (job.status, job.exit_code, job.metadata) == ("SUCCEEDED", 0, {"a": "b", "asked": "1"})
    assert job in jobs_list(client)


def test_a_cluster_is_found_by_its_gcs_and_as_the_ray_of_this_machine(
    shared_head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's own settings for another cluster are not used.
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.254:1")
    for address in (f"http://{shared_head.gcs_address}", "auto"):
        # Where Ray notes the address of the last cluster that was started here.
        monkeypatch.setenv("RAY_TMPDIR", str(shared_head.folder))
        assert connect(address, environ=shared_head.environment).address == shared_head.address


def test_a_proxy_of_the_environment_sees_nothing_of_a_job_on_this_machine(
    client: JobClient, shared_head: RayHead, working_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as recording:
        recording.setblocking(False)
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{recording.getsockname()[1]}")
        again = connect(shared_head.address, environ={"RAY_AUTH_TOKEN": "abc"})
        job_id = submit(again, script="echo", arguments=["slow-lines"], working_dir=working_dir)
        exit_code, log = _follow(again, job_id)
        assert (exit_code, _lines(log)) == (0, [f"line {number}" for number in range(30)])
        # Whoever had connected would wait to be accepted.
        with pytest.raises(BlockingIOError):
            recording.accept()


def test_ten_thousand_lines_arrive_once_and_in_order_with_the_exit_code(client: JobClient, working_dir: Path) -> None:
    job_id = submit(client, script="echo", arguments=["lines", "3", "10000"], working_dir=working_dir)
    exit_code, log = _follow(client, job_id)
    assert exit_code == 3
    assert _lines(log) == [f"line {number}" for number in range(10_000)]
    assert job_logs(client, job_id) == log


def test_the_option_wins_over_rays_own_address_variables(
    client: JobClient, working_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    job_id = submit(client, script="echo", arguments=["exit", "7"], working_dir=working_dir)
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:9"
    assert _follow(client, job_id)[0] == 7


def test_the_same_job_twice_is_one_another_of_its_name_a_conflict_and_an_ended_one_makes_room(
    client: JobClient, working_dir: Path
) -> None:
    job: dict[str, Any] = {"script": "echo", "arguments": ["sleep"], "working_dir": working_dir, "name": "train-a-1"}
    # Several at the same time, as from two terminals.
    with ThreadPoolExecutor(4) as pool:
        tries = [pool.submit(submission.submit, client, metadata={"asked": "1"}, **job) for _ in range(4)]
        found = [each.result() for each in tries]
    assert {each.job_id for each in found} == {"train-a-1"}
    assert [each.is_new for each in found].count(True) == 1
    assert "RAY_API_SERVER_ADDRESS" not in os.environ
    with pytest.raises(ConflictError) as caught:
        submission.submit(client, metadata={"asked": "2"}, **job)
    assert str(caught.value) == (
        f"job 'train-a-1': runs on {client.address} with other settings; wait for its end, stop it, or choose "
        "another --name"
    )
    assert job_stop(client, "train-a-1").status == "STOPPED"
    assert _follow(client, "train-a-1")[0] == 143
    assert job_stop(client, "train-a-1").status == "STOPPED"
    again = submission.submit(client, metadata={"asked": "2"}, **job)
    assert again == submission.Submitted("train-a-1.2", is_new=True)
    assert job_stop(client, again.job_id).status == "STOPPED"


def test_a_job_that_ray_cannot_start_ends_with_rays_reason(client: JobClient) -> None:
    ray_client = JobSubmissionClient(client.address)
    job_id = ray_client.submit_job(
        entrypoint="true", runtime_env={"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"}
    )
    with pytest.raises(ClusterError, match=f"job '{job_id}': failed before it started: RUNTIME_ENV_SETUP_FAILURE: .+"):
        _follow(client, job_id)


def test_an_unknown_job_is_a_usage_error(client: JobClient) -> None:
    for ask in (job_status, job_logs, job_stop, _follow):
        with pytest.raises(ConfigError, match=r"job 'no/such job': http.* knows no such job"):
            ask(client, "no/such job")


def test_a_job_that_the_cluster_cannot_hold_is_refused_with_what_there_is(client: JobClient, working_dir: Path) -> None:
    num_jobs = len(jobs_list(client))
    with pytest.raises(ClusterError, match="the job needs 3 CPU and the cluster has 2; ask for less or add nodes"):
        submit(client, script="echo", arguments=[], working_dir=working_dir, resources={"CPU": 3})
    with pytest.raises(ClusterError, match="the job needs 1 GPU and the cluster has 0"):
        submit(client, script="echo", arguments=[], working_dir=working_dir, resources={"CPU": 2, "GPU": 1})
    assert len(jobs_list(client)) == num_jobs


class _Relay:
    """Passes TCP connections on to a server and can cut all that are open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # Closed.
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # Cut.
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):  # Ended by itself.
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


def test_a_cut_connection_repeats_and_loses_no_line(client: JobClient, working_dir: Path) -> None:
    class CuttingOutput(io.StringIO):
        def write(self, text: str) -> int:
            before = len(_lines(self.getvalue()))
            written = super().write(text)
            if before // 8 < len(_lines(self.getvalue())) // 8:
                cuts.append(time.monotonic())
                relay.cut()
            return written

    cuts: list[float] = []
    relay = _Relay(int(client.address.rpartition(":")[2]))
    output = CuttingOutput()
    job_id = submit(client, script="echo", arguments=["slow-lines"], working_dir=working_dir)
    assert follow(JobClient(relay.address), job_id, output=output) == 0
    relay.close()
    assert len(cuts) >= 2
    assert _lines(output.getvalue()) == [f"line {number}" for number in range(30)]
    assert output.getvalue() == job_logs(client, job_id)
