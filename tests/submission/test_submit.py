import asyncio
import io
import json
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cli.options import remote_storage
from mnist_ray.errors import ClusterError, ConfigError, StorageError
from mnist_ray.submission import follow as following
from mnist_ray.submission import job_api
from mnist_ray.submission.follow import follow, how_to_stop
from mnist_ray.submission.job_api import JobClient, connect, jobs_list
from mnist_ray.submission.submit import check_resources, check_version, job_environment, stage_working_dir, submit


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    files = {
        "mnist_ray/__init__.py": "",
        "mnist_ray/data/idx.py": "",
        "mnist_ray/notes.txt": "",
        "mnist_ray/report/templates/report.html": "",
        "mnist_ray/saved.html": "",
        "mnist_ray/__pycache__/a.pyc": "",
        "mnist_ray/.venv/lib.py": "",
        "jobs/train.py": "",
        "jobs/.env": "AWS_SECRET_ACCESS_KEY=x",
        ".env": "AWS_SECRET_ACCESS_KEY=x",
        ".git/config": "",
        "results/predictions.parquet": "",
        "setup.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "mnist_ray" / "link.py").symlink_to(tmp_path / ".env")
    return tmp_path


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_only_the_code_of_the_package_and_the_jobs_and_the_template_of_the_report_travel(checkout: Path) -> None:
    with stage_working_dir("epochs: 3\n", package=checkout / "mnist_ray") as folder:
        assert _names(folder) == [
            "job.yaml",
            "jobs/train.py",
            "mnist_ray/__init__.py",
            "mnist_ray/data/idx.py",
            "mnist_ray/report/templates/report.html",
        ]
        assert (folder / "job.yaml").read_text() == "epochs: 3\n"
    assert not folder.exists()


def test_this_very_package_travels_with_its_template() -> None:
    with stage_working_dir() as folder:
        assert (folder / "mnist_ray" / "report" / "templates" / "report.html").is_file()
        assert (folder / "jobs" / "evaluate.py").is_file()


def test_an_installed_package_ships_its_own_copy_of_the_jobs(checkout: Path) -> None:
    (checkout / "mnist_ray" / "_jobs").mkdir()
    (checkout / "mnist_ray" / "_jobs" / "tune.py").touch()
    with stage_working_dir(package=checkout / "mnist_ray") as folder:
        assert [path.name for path in (folder / "jobs").iterdir()] == ["tune.py"]


def test_a_package_without_its_jobs_is_not_shipped(checkout: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"nowhere: no \*\.py file"),
        stage_working_dir(package=checkout / "mnist_ray", jobs=tmp_path / "nowhere"),
    ):
        pass


def test_a_folder_too_large_for_the_dashboard_is_refused(checkout: Path) -> None:
    (checkout / "jobs" / "large.py").write_bytes(b"#" * ((20 << 20) + 1))
    with (
        pytest.raises(ConfigError, match="job files: 20971521 bytes; the code and config of a job must stay"),
        stage_working_dir(package=checkout / "mnist_ray"),
    ):
        pass


def test_of_a_checkout_that_ray_itself_uploads_secrets_and_history_stay_behind(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    checkout = tmp_path / "checkout"
    kept = ["jobs/train.py", "mnist_ray/__init__.py", "mnist_ray/report/templates/report.html"]
    secrets = [".env", ".env.local", ".git/config", ".aws/credentials", ".ssh/config", "id_ed25519", "deploy/a.pem"]
    secrets += ["tls.key", "auth_token", ".venv/lib.py", "jobs/.env", "results/runs/a/config.json"]
    for name in [*kept, *secrets]:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    for name in (".gitignore", ".rayignore"):
        shutil.copy(Path(__file__).parents[2] / name, checkout)
    # As `ray job submit --working-dir .` does.
    create_package(str(checkout), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        assert sorted(name for name in package.namelist() if not name.endswith("/")) == [
            ".gitignore",
            ".rayignore",
            *kept,
        ]


def test_keys_and_tokens_stay_behind() -> None:
    environ = {
        "AWS_ENDPOINT_URL": "http://storage:9000",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "session",
        "RAY_AUTH_TOKEN": "token",
        "MLFLOW_TRACKING_URI": "https://mlflow.example",
        "MLFLOW_TRACKING_PASSWORD": "password",
        "MNIST_RAY_DATA": "/data",
        "OMP_NUM_THREADS": "64",
        "HOME": "/home/me",
    }
    assert job_environment(environ) == {
        "AWS_ENDPOINT_URL": "http://storage:9000",
        "AWS_REGION": "eu-central-1",
        "MLFLOW_TRACKING_URI": "https://mlflow.example",
        "MNIST_RAY_DATA": "/data",
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
    }


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"])
def test_an_endpoint_with_credentials_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        job_environment({name: "http://me:hunter2@storage:9000"})
    assert "hunter2" not in str(caught.value)


class _Server:
    """An HTTP server with one answer to each path; remembers the requests."""

    def __init__(self, answers: dict[str, tuple[int, str]]) -> None:
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, self.headers["Authorization"]))
                status, text = answers.get(self.path.partition("?")[0], (404, "nothing here"))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", text)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> "_Server":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def no_token(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


VERSION = {"/api/version": (200, '{"ray_version": "2.60.0"}')}


def test_the_token_is_sent_with_the_first_request() -> None:
    with _Server(VERSION) as server:
        client = connect(server.address, environ={"RAY_AUTH_TOKEN": "abc"})
    assert server.requests == [("/api/version", "Bearer abc")]
    assert "abc" not in repr(client)


def test_the_newest_job_is_listed_first() -> None:
    entry = {"type": "SUBMISSION", "status": "SUCCEEDED", "entrypoint": "", "message": "", "error_type": None}
    entry |= {"driver_exit_code": 0, "end_time": None, "metadata": {}}
    entries = [{**entry, "submission_id": name, "start_time": time} for name, time in [("b", 2), ("c", 3), ("a", 1)]]
    with _Server({"/api/jobs/": (200, json.dumps(entries))}) as server:
        listed = jobs_list(JobClient(server.address))
    assert [job.job_id for job in listed] == ["c", "b", "a"]


@pytest.mark.parametrize(
    "answer",
    [(200, "<html>hello</html>"), (200, "[]"), (200, '{"version": 1}'), (404, "no"), (502, "bad gateway"), (302, "/x")],
)
def test_an_http_server_that_is_no_ray_dashboard_is_named(no_token: dict[str, str], answer: tuple[int, str]) -> None:
    with _Server({"/api/version": answer}) as server, pytest.raises(ClusterError) as caught:
        connect(server.address, environ=no_token)
    assert str(caught.value) == (
        f"{server.address}: answered HTTP {answer[0]} and is not a Ray dashboard; "
        "give the dashboard of the cluster's head, usually http://HOST:8265"
    )
    assert len(server.requests) == 1


@pytest.mark.parametrize("text", ["{}", "[1]", "null", '[{"type": "SUBMISSION"}]', '{"data": []}', "nonsense"])
def test_an_answer_in_another_form_than_rays_is_told_in_one_line(text: str) -> None:
    paths = ("/api/jobs/", "/api/jobs/a", "/api/jobs/a/logs", "/api/v0/nodes", "/api/cluster_status")
    with _Server(dict.fromkeys(paths, (200, text))) as server:
        client = JobClient(server.address)
        asked = [lambda: job_api.job_status(client, "a"), lambda: job_api.job_logs(client, "a")]
        asked.append(lambda: check_resources(client, {"CPU": 1}))
        if text != "{}":  # as good as an empty list: a cluster without jobs
            asked.append(lambda: jobs_list(client))
        for ask in asked:
            with pytest.raises(ClusterError, match=server.address) as caught:
                ask()
            assert "\n" not in str(caught.value)


def test_a_closed_port_is_reported_at_once(no_token: dict[str, str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # Bound and not listening: refused.
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"{address}: no Ray dashboard reached: Connection refused"):
            connect(address, environ=no_token)


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_a_stale_variable_is_blamed_by_its_name(no_token: dict[str, str], variable: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{closed.getsockname()[1]}"
        environ = {**no_token, variable: place}
        with pytest.raises(ClusterError) as caught:
            connect(f"http://{place}", environ=environ)
        assert str(caught.value) == (
            f"{variable}=http://{place}: no Ray dashboard reached: Connection refused; correct or unset {variable}"
        )
        # Of an option that leads elsewhere the variable is not to blame.
        with pytest.raises(ClusterError) as caught:
            connect(f"http://{place}", environ={**environ, variable: "127.0.0.1:9"})
        assert str(caught.value) == f"http://{place}: no Ray dashboard reached: Connection refused"


@pytest.fixture
def silent_listener() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_listener_that_never_answers_is_given_up(
    no_token: dict[str, str], silent_listener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job_api.CONNECT_TIMEOUT_S == 14.0
    monkeypatch.setattr(job_api, "CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(ClusterError, match=f"{silent_listener}: no answer within 0.5 s; check the address"):
        connect(silent_listener, environ=no_token)


def test_something_that_does_not_speak_http_is_not_a_dashboard(no_token: dict[str, str]) -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"\x00\x00\x18\x04 not http\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        with pytest.raises(ClusterError, match="no Ray dashboard reached: the server there does not speak HTTP"):
            connect(f"http://127.0.0.1:{listener.getsockname()[1]}", environ=no_token)
        thread.join()


def test_a_token_in_plain_text_to_another_machine_is_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_api, "CONNECT_TIMEOUT_S", 0.2)
    with pytest.raises(ClusterError):
        connect("http://192.0.2.254:9", environ={"RAY_AUTH_TOKEN": "abc"})
    assert capsys.readouterr().err == (
        "warning: http://192.0.2.254:9: the token travels in plain text; use https or a tunnel on an open network\n"
    )


@pytest.mark.parametrize("address", ["http://192.0.2.254:8265", "https://head.example/ray"])
def test_another_machine_is_sent_nothing_without_a_token(
    no_token: dict[str, str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(job_api, "_request", lambda *_, **__: pytest.fail("something was sent"))
    with pytest.raises(ClusterError) as caught:
        connect(address, environ=no_token)
    assert caught.value.exit_code == 5
    assert str(caught.value) == (
        f"{address}: another machine, and no token was found for it; give this cluster's token in RAY_AUTH_TOKEN or "
        "RAY_AUTH_TOKEN_PATH, or use a tunnel to this machine (RAY_AUTH_MODE=disabled connects without a token)"
    )


def test_another_machine_without_tokens_is_warned_of_where_the_person_says_so(
    no_token: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    def request(client: JobClient, method: str, path: str, *, timeout_s: float) -> tuple[int, str]:
        sent.append((path, client.headers))
        return VERSION[path]

    monkeypatch.setattr(job_api, "_request", request)
    connect("http://192.0.2.254:8265", environ={**no_token, "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "abc"})
    assert sent == [("/api/version", {})]
    assert capsys.readouterr().err == (
        "warning: http://192.0.2.254:8265: RAY_AUTH_MODE=disabled: "
        "anyone who reaches this address can run any code on the cluster\n"
    )


NODES = '{"data": {"result": {"result": [%s]}}}'
TWO_CPUS = '{"state": "ALIVE", "resources_total": {"CPU": 2.0}}'
DEAD = '{"state": "DEAD", "resources_total": {"CPU": 64.0}}'
FIXED = '{"data": {"clusterStatus": {"autoscalerReport": {"nodeTypeMapping": {"ab": "node_ab"}}}}}'
GROWING = '{"data": {"clusterStatus": {"autoscalerReport": {"nodeTypeMapping": {"ab": "ray.head.default"}}}}}'


def _cluster(nodes: str, status: str) -> _Server:
    return _Server({"/api/v0/nodes": (200, NODES % nodes), "/api/cluster_status": (200, status)})


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
    with _cluster(f"{TWO_CPUS}, {TWO_CPUS}, {DEAD}", FIXED) as server, pytest.raises(ClusterError) as caught:
        check_resources(JobClient(server.address), needed)
    assert str(caught.value) == f"{server.address}: {missing}; ask for less or add nodes"


def test_a_job_that_fills_the_cluster_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with _cluster(f"{TWO_CPUS}, {TWO_CPUS}", FIXED) as server:
        check_resources(JobClient(server.address), {"CPU": 4})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("status", [GROWING, '{"data": {"clusterStatus": null}}'])
def test_a_cluster_that_may_grow_is_not_refused(capsys: pytest.CaptureFixture[str], status: str) -> None:
    with _cluster(TWO_CPUS, status) as server:
        check_resources(JobClient(server.address), {"GPU": 1})
    assert capsys.readouterr().err == (
        f"note: {server.address}: the job needs 1 GPU and the cluster has 0; "
        "the job waits until the cluster has grown (--resource-timeout)\n"
    )


NO_AGENT = "No available agent to submit job, please try again later."


class _StartingHead(_Server):
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


VERSION_HERE = {"/api/version": (200, json.dumps({"ray_version": version("ray")}))}


def submit_to(server: _Server, folder: Path) -> str:
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
    assert server.num_posts > 1


def test_other_requests_wait_for_the_agent_of_a_head_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_api, "STARTING_S", 0.1)
    monkeypatch.setattr(job_api, "_PAUSE_S", 0.01)
    text = "Traceback\nTimeoutError: Failed to get head node agent within 10 seconds. The last exception is x\n"
    with _Server({"/api/jobs/a/logs": (500, text)}) as server, pytest.raises(ClusterError, match="Tried again for"):
        job_api.job_logs(JobClient(server.address), "a")
    assert len(server.requests) > 1
    with _Server({"/api/jobs/a/logs": (500, "Traceback\nValueError: x")}) as server, pytest.raises(ClusterError):
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
    with _cluster(f"{TWO_CPUS}, {TWO_CPUS}, {DEAD}", FIXED) as server, pytest.raises(StorageError) as caught:
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


def _job(status: str, exit_code: str = "null") -> str:
    return (
        f'{{"submission_id": "a", "status": "{status}", "entrypoint": "e", "message": "one\\ntwo", "error_type": "T",'
        f' "driver_exit_code": {exit_code}, "start_time": 1500, "end_time": 2500, "metadata": {{}}}}'
    )


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [
        ("SUCCEEDED", "0", 0),
        ("FAILED", "3", 3),
        ("FAILED", "137", 137),
        ("FAILED", "-9", 137),
        ("STOPPED", "null", 143),
    ],
)
def test_the_exit_code_is_the_jobs_own(status: str, exit_code: str, expected: int) -> None:
    answers = {"/api/jobs/a": (200, _job(status, exit_code)), "/api/jobs/a/logs": (200, '{"logs": "text"}')}
    output = io.StringIO()
    with _Server(answers) as server:
        assert follow(JobClient(server.address), "a", output=output) == expected
    assert output.getvalue() == "text"


def test_a_log_that_ray_cannot_read_is_said_and_the_exit_code_kept(capsys: pytest.CaptureFixture[str]) -> None:
    answers = {
        "/api/jobs/a": (200, _job("FAILED", "7")),
        "/api/jobs/a/logs": (500, "Traceback\nUnicodeDecodeError: x\n"),
    }
    with _Server(answers) as server:
        assert follow(JobClient(server.address), "a", output=io.StringIO()) == 7
    assert capsys.readouterr().err == (
        f"warning: the log above may lack its end: {server.address}/api/jobs/a/logs: HTTP 500: UnicodeDecodeError: x\n"
    )


def test_a_cluster_that_is_gone_while_its_job_is_followed_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "RECONNECT_S", 0.0)
    server = _Server({"/api/jobs/a": (200, _job("RUNNING"))})

    def stop_after_two_requests() -> None:
        while len(server.requests) < 2:
            time.sleep(0.01)
        server.__exit__()

    server.__enter__()
    stopper = threading.Thread(target=stop_after_two_requests)
    stopper.start()
    with pytest.raises(ClusterError) as caught:
        follow(JobClient(server.address), "a", output=io.StringIO())
    stopper.join()
    assert "the job may go on: see its log with 'mnist-ray jobs logs a" in str(caught.value)


def test_a_log_sent_again_from_its_beginning_is_written_once() -> None:
    output = io.StringIO()
    writer = following._LogWriter(output)
    for parts in (["one\n", "tw"], ["one\ntwo\n", "three\n"], ["o", "ne\ntwo\nthree\nfour\n"]):
        writer.restart()
        for part in parts:
            writer.write(part)
    assert output.getvalue() == "one\ntwo\nthree\nfour\n"


def test_an_output_that_cannot_be_written_is_not_taken_for_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def one_part(client: JobClient, job_id: str):
        yield "text"

    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(following, "_log_parts", one_part)
    with pytest.raises(BrokenPipeError):
        asyncio.run(following._tail_log(JobClient("http://unused"), "a", following._LogWriter(Broken())))


def test_the_ways_out_of_a_job_left_behind_can_be_pasted_into_a_shell() -> None:
    assert how_to_stop("a b", "http://h:1") == (
        "see its log with 'mnist-ray jobs logs 'a b' --address http://h:1', "
        "stop it with 'mnist-ray jobs stop 'a b' --address http://h:1'"
    )
