"""The first requests to a dashboard: what answers, and what is told of what doesn't."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray.errors import ClusterError
from mnist_ray.submission import connect as connecting
from mnist_ray.submission import job_api
from mnist_ray.submission.connect import connect
from mnist_ray.submission.job_api import JobClient, jobs_list
from mnist_ray.submission.submit import check_resources
from tests.support.dashboard import VERSION, Dashboard


@pytest.fixture
def no_token(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def test_the_token_is_sent_with_the_first_request() -> None:
    with Dashboard(VERSION) as server:
        client = connect(server.address, environ={"RAY_AUTH_TOKEN": "abc"})
    assert server.requests == [("/api/version", "Bearer abc")]
    assert "abc" not in repr(client)


def test_the_newest_job_is_listed_first() -> None:
    entry = {"type": "SUBMISSION", "status": "SUCCEEDED", "entrypoint": "", "message": "", "error_type": None}
    entry |= {"driver_exit_code": 0, "end_time": None, "metadata": {}}
    entries = [{**entry, "submission_id": name, "start_time": time} for name, time in [("b", 2), ("c", 3), ("a", 1)]]
    with Dashboard({"/api/jobs/": (200, json.dumps(entries))}) as server:
        listed = jobs_list(JobClient(server.address))
    assert [job.job_id for job in listed] == ["c", "b", "a"]


@pytest.mark.parametrize(
    "answer",
    [(200, "<html>hello</html>"), (200, "[]"), (200, '{"version": 1}'), (404, "no"), (502, "bad gateway"), (302, "/x")],
)
def test_an_http_server_that_is_no_ray_dashboard_is_named(no_token: dict[str, str], answer: tuple[int, str]) -> None:
    with Dashboard({"/api/version": answer}) as server, pytest.raises(ClusterError) as caught:
        connect(server.address, environ=no_token)
    assert str(caught.value) == (
        f"{server.address}: answered HTTP {answer[0]} and is not a Ray dashboard; "
        "give the dashboard of the cluster's head, usually http://HOST:8265"
    )
    assert len(server.requests) == 1


@pytest.mark.parametrize("text", ["{}", "[1]", "null", '[{"type": "SUBMISSION"}]', '{"data": []}', "nonsense"])
def test_an_answer_in_another_form_than_rays_is_told_in_one_line(text: str) -> None:
    paths = ("/api/jobs/", "/api/jobs/a", "/api/jobs/a/logs", "/api/v0/nodes", "/api/cluster_status")
    with Dashboard(dict.fromkeys(paths, (200, text))) as server:
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
    assert connecting.CONNECT_TIMEOUT_S == 14.0
    monkeypatch.setattr(connecting, "CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(ClusterError, match=f"{silent_listener}: no answer within 0.5 s; check the address"):
        connect(silent_listener, environ=no_token)


@pytest.fixture
def no_http() -> Iterator[str]:
    """The address of a server that answers one request as a GCS does."""

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"\x00\x00\x18\x04 not http\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_something_that_does_not_speak_http_is_not_a_dashboard(
    no_token: dict[str, str], no_http: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is then asked as a GCS; this one never answers.
    monkeypatch.setattr(connecting, "CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(ClusterError, match="no Ray dashboard reached: the server there does not speak HTTP"):
        connect(f"http://{no_http}", environ=no_token)


def test_a_gcs_leads_to_its_dashboard_with_the_same_token(no_http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(gcs_address: str, token: str | None, *, timeout_s: float) -> str:
        asked.append((gcs_address, token, timeout_s))
        return server.address

    monkeypatch.setattr(connecting, "ask_for_dashboard", ask)
    with Dashboard(VERSION) as server:
        client = connect(f"http://{no_http}", environ={"RAY_AUTH_TOKEN": "abc"})
    assert client.address == server.address
    assert asked == [(no_http, "abc", 14.0)]
    assert server.requests == [("/api/version", "Bearer abc")]


def test_the_loopback_of_another_machine_is_not_taken_for_this_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_http(*_: object, **__: object) -> tuple[int, str]:
        raise job_api.NoHttp("no HTTP")

    monkeypatch.setattr(connecting, "request", no_http)
    monkeypatch.setattr(connecting, "ask_for_dashboard", lambda *_, **__: "http://127.0.0.1:8265")
    with pytest.raises(ClusterError) as caught:
        connect("http://192.0.2.254:6379", environ={"RAY_AUTH_TOKEN": "abc"})
    assert str(caught.value) == (
        "192.0.2.254:6379: this cluster's dashboard listens on the loopback of 192.0.2.254 only; open a tunnel, "
        "ssh -L 8265:127.0.0.1:8265 192.0.2.254, and use http://127.0.0.1:8265"
    )


def test_a_token_in_plain_text_to_another_machine_is_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "CONNECT_TIMEOUT_S", 0.2)
    with pytest.raises(ClusterError):
        connect("http://192.0.2.254:9", environ={"RAY_AUTH_TOKEN": "abc"})
    assert capsys.readouterr().err == (
        "warning: http://192.0.2.254:9: the token travels in plain text; use https or a tunnel on an open network\n"
    )


@pytest.mark.parametrize("address", ["http://192.0.2.254:8265", "https://head.example/ray"])
def test_another_machine_is_sent_nothing_without_a_token(
    no_token: dict[str, str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(connecting, "request", lambda *_, **__: pytest.fail("something was sent"))
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

    monkeypatch.setattr(connecting, "request", request)
    connect("http://192.0.2.254:8265", environ={**no_token, "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "abc"})
    assert sent == [("/api/version", {})]
    assert capsys.readouterr().err == (
        "warning: http://192.0.2.254:8265: RAY_AUTH_MODE=disabled: "
        "anyone who reaches this address can run any code on the cluster\n"
    )
