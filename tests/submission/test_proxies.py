"""What is for this machine never goes through a proxy, whatever the environment says; a token to others only unseen."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import requests
from botocore.utils import get_environ_proxies
from pyarrow import table
from requests.utils import should_bypass_proxies

from mnist_ray.errors import ClusterError
from mnist_ray.storage.proxies import keep_off_proxies, proxy_of, without_password
from mnist_ray.storage.storage import open_storage
from mnist_ray.submission.connect import connect
from mnist_ray.submission.submit import _api_server

VERSION = '{"ray_version": "2.60.0"}'


class Recorder:
    """An HTTP server that gives one answer to everything, and remembers what it was asked."""

    def __init__(self, status: int, text: str, host: str = "127.0.0.1") -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                recorder.requests.append((f"{self.command} {self.path}", dict(self.headers)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_CONNECT = do_POST = do_PUT = do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer((host, 0), Handler)
        self.port = self.http.server_port
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """A proxy that refuses all, and that every variable names, with credentials."""
    recorder = Recorder(502, "proxied")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for each in (name, name.upper()):
            monkeypatch.setenv(each, f"http://me:hunter2@127.0.0.1:{recorder.port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "unrelated.example")
    yield recorder
    recorder.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.9.8.7", "[::ffff:127.0.0.1]"])
def test_a_token_for_this_machine_is_seen_by_no_proxy(proxy: Recorder, host: str) -> None:
    server = Recorder(200, VERSION, host if host[0] == "1" else "127.0.0.1")
    address = f"http://{host}:{server.port}"
    connect(address, environ={"RAY_AUTH_TOKEN": "abc"})
    # Ray's own client, for the submission.
    with _api_server(address):
        assert requests.get(f"{address}/x", headers={"Authorization": "Bearer abc"}, timeout=10).status_code == 200
    server.close()
    assert proxy.requests == []
    assert [(path, headers["Authorization"]) for path, headers in server.requests] == [
        ("GET /api/version", "Bearer abc"),
        ("GET /x", "Bearer abc"),
    ]


@pytest.mark.s3
def test_a_storage_on_this_machine_is_reached_without_the_proxy(s3_uri: str, proxy: Recorder) -> None:
    storage = open_storage(s3_uri)
    storage.check()
    storage.write_bytes("a.txt", b"abc")
    assert storage.read_bytes("a.txt") == b"abc"
    filesystem = storage._backend.filesystem()
    path = f"{s3_uri.removeprefix('s3://')}/a.parquet"
    pq.write_table(table({"a": [1, 2]}), path, filesystem=filesystem)
    assert pq.read_table(path, filesystem=filesystem).to_pydict() == {"a": [1, 2]}
    assert proxy.requests == []


def test_a_tracker_on_this_machine_is_reached_without_the_proxy(
    proxy: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow")
    from mnist_ray.tracking.mlflow import MLflow

    tracker = Recorder(200, '{"experiment": {"experiment_id": "7", "name": "x"}}')
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    # The first request asks for the experiment.
    assert MLflow(open_storage(str(tmp_path)), f"http://127.0.0.1:{tracker.port}", "x", print)._experiment == "7"
    tracker.close()
    assert [headers["Authorization"] for _, headers in tracker.requests] == ["Bearer abc"]
    assert proxy.requests == []


def test_a_token_in_plain_text_is_sent_through_no_proxy(proxy: Recorder) -> None:
    with pytest.raises(ClusterError) as caught:
        connect("http://head.example:8265", environ={"RAY_AUTH_TOKEN": "abc"})
    assert str(caught.value) == (
        f"http://head.example:8265: the proxy http://127.0.0.1:{proxy.port} would see the token; use https, or set "
        "NO_PROXY=head.example to go there directly"
    )
    assert caught.value.exit_code == 5
    assert proxy.requests == []


def test_a_token_over_https_is_in_the_tunnel_and_the_proxy_is_named_without_its_password(proxy: Recorder) -> None:
    with pytest.raises(ClusterError) as caught:
        connect("https://head.example", environ={"RAY_AUTH_TOKEN": "abc"})
    assert str(caught.value) == (
        f"https://head.example: no Ray dashboard reached through the proxy http://127.0.0.1:{proxy.port}: "
        "it answers HTTP 502"
    )
    ((path, headers),) = proxy.requests
    assert path == "CONNECT head.example:443"
    assert "Proxy-Authorization" in headers
    assert "Authorization" not in headers


def test_an_answer_that_a_proxy_gave_names_it(proxy: Recorder) -> None:
    with pytest.raises(
        ClusterError, match=rf"answered HTTP 502 through the proxy http://127\.0\.0\.1:{proxy.port} and"
    ):
        connect("http://head.example:8265", environ={"RAY_AUTH_MODE": "disabled"})
    assert [path for path, _ in proxy.requests] == ["GET http://head.example:8265/api/version"]


@pytest.mark.usefixtures("proxy")
def test_a_host_of_no_proxy_and_all_proxy_are_understood_as_by_rays_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "head.example, 10.0.0.7")
    assert proxy_of("http://head.example:8265") is None
    assert proxy_of("http://10.0.0.7:8265") is None
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("all_proxy", "proxy.example:3128")
    assert proxy_of("http://10.0.0.8:8265") == "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("host", "exempt", "is_direct"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3:8265", True),
        ("[fd00::1]", "fd00::1", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("[fd00::1]", "x, fd00::/8", True),
        ("[fe00::1]", "fd00::/8", False),
        ("head.example", "head.example:8265", True),
        ("head.example", ".example", True),
        ("head.example", "*", True),
        ("127.0.0.1", " * ", True),
    ],
)
@pytest.mark.usefixtures("proxy")
def test_rays_client_and_boto3_go_where_no_proxy_says_by_the_same_rule(
    host: str, exempt: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, exempt)
    address = f"http://{host}:8265"
    assert (proxy_of(address) is None) is is_direct
    with _api_server(address):
        assert should_bypass_proxies(address, no_proxy=None) is is_direct
        assert (get_environ_proxies(address) == {}) is is_direct


@pytest.mark.usefixtures("proxy")
def test_a_proxy_of_another_kind_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://me:hunter2@proxy.example:1080")
    with pytest.raises(ClusterError) as caught:
        proxy_of("https://head.example")
    assert str(caught.value) == (
        "HTTPS_PROXY=socks5://proxy.example:1080: not an HTTP proxy; write it as http://HOST:PORT, or set "
        "NO_PROXY=head.example to go there directly"
    )


@pytest.mark.usefixtures("proxy")
def test_what_was_kept_off_proxies_stays_so_once_and_other_hosts_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not keep_off_proxies("http://head.example:8265")
    assert os.environ["NO_PROXY"] == "unrelated.example"
    assert keep_off_proxies("http://[::1]:8265")
    assert not keep_off_proxies("http://[::1]:8265")
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "unrelated.example,::1,[::1]"
    monkeypatch.setenv("no_proxy", "*")
    assert not keep_off_proxies("http://127.0.0.1:8265")


def test_a_proxy_is_shown_without_its_credentials() -> None:
    assert without_password("http://me:p@ss@proxy.example:3128") == "http://proxy.example:3128"
