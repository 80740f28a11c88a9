"""An HTTP server that answers as told, for what no real S3 server can be made to do."""

import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mnist_ray.storage.storage import Storage, open_storage
from tests.support.s3_fixtures import S3Server

Answer = tuple[int, bytes]
Answers = Callable[[str, str, int], Answer]


class Request(str):
    """Method and path of a request that was answered; signer is the key's name that it was signed with."""

    signer: str | None = None


def refusal(status: int, code: str) -> Answer:
    return status, f"<Error><Code>{code}</Code><Message>as told</Message></Error>".encode()


def always(answer: Answer) -> Answers:
    return lambda *_request: answer


@contextmanager
def scripted_server(
    answers: Answers,
    *,
    breaks_off: int = 0,
    creator: str | None = None,
) -> Iterator[tuple[str, list[Request]]]:
    """Gives an HTTP server's address and its log; answers(method, path, how often asked before) is what it says.

    Args:
      answers: the status and body of each answer.
      breaks_off: number of GET answers of which only the first half arrives.
      creator: the metadata `creator` of every object; by default what the last PUT gave.
    """
    asked: list[Request] = []
    given: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = f"{self.command} {urllib.parse.urlsplit(self.path).path}"
            asked.append(Request(request))
            signed = re.search(r"Credential=(\w+)", self.headers.get("Authorization", ""))
            asked[-1].signer = signed[1] if signed else None
            times = asked.count(request)
            given.extend(filter(None, [self.headers.get("x-amz-meta-creator")]))
            status, body = answers(self.command, self.path, times - 1)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if self.command != "PUT" and (found := creator or (given[-1] if given else None)):
                self.send_header("x-amz-meta-creator", found)
            self.end_headers()
            if self.command == "GET" and times <= breaks_off:
                body = body[: len(body) // 2]
                self.close_connection = True
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

        def log_message(self, format: str, *args: Any) -> None:
            """Keeps the test's output clean; `asked` is the log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def storage_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    S3Server(endpoint).use(monkeypatch)
    return open_storage("s3://bucket/prefix")
