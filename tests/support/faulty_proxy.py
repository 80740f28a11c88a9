"""A real HTTP proxy on the loopback that stands before an S3 server and does to requests what bad networks do."""

import http.client
import random
import re
import socket
import struct
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What the proxy does to a request:
#   error, slow_down  answers 500 or 503 by itself
#   forbidden         answers 403 by itself
#   reset             resets the connection, the server never hears of it
#   lost              passes the request on and resets the connection instead of answering
#   twice             passes the request on twice and gives back the second answer
#   flip_upload       flips a bit of the body that is sent to the server
#   flip_answer       flips a bit of the body that comes back
#   hang              never answers
#   down              stops listening, for good, and resets the connection
FAILURES = ("error", "slow_down", "reset", "lost")
FLIPS = ("flip_upload", "flip_answer")
REFUSALS = {"error": (500, "InternalError"), "slow_down": (503, "SlowDown"), "forbidden": (403, "AccessDenied")}

# Of a request, its line without the host, and how many requests there were before: what to do to it, None for nothing.
Choice = Callable[[str, int], str | None]

_TOKEN = re.compile(r"[0-9a-f]{16,}")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


def drawn(kinds: tuple[str, ...], *, seed: int, share: float = 0.3) -> Choice:
    """Chooses faults for a share of the requests, by the seed, the request's line and how often it came before.

    So they do not depend on the order in which threads ask; names of the staging area are drawn by the system.
    Listings have no checksum in S3: what flips bits in them is beyond any client, and TLS's to notice.
    """
    seen: Counter[str] = Counter()

    def choose(line: str, _: int) -> str | None:
        if kinds == FLIPS and "list-type=" in line:
            return None
        line = _TOKEN.sub("*", line)
        seen[line] += 1
        generator = random.Random(f"{seed} {line} {seen[line]}")
        return generator.choice(kinds) if generator.random() < share else None

    return choose


def after(count: int, kind: str) -> Choice:
    """Chooses one fault for all requests after the first few."""
    return lambda _, before: kind if before >= count else None


def by_bucket(choices: Mapping[str, Choice]) -> Choice:
    """Chooses as the bucket of the request says, and counts the requests of each."""
    before: Counter[str] = Counter()

    def choose(line: str, _: int) -> str | None:
        bucket = line.split("/")[1].partition("?")[0]
        before[bucket] += 1
        return choices[bucket](line, before[bucket] - 1) if bucket in choices else None

    return choose


@dataclass
class FaultyProxy:
    """A running proxy.

    Attributes:
      endpoint: its address.
      done: how often it did what to requests.
    """

    endpoint: str
    done: Counter[str] = field(default_factory=Counter)


@contextmanager
def faulty_proxy(server: str, choose: Choice) -> Iterator[FaultyProxy]:
    """Gives a proxy in threads of this process.

    Args:
      server: http://host:port of the real server.
      choose: what to do to each request.
    """
    listening = _Server(urllib.parse.urlsplit(server).netloc, choose)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield listening.proxy
    finally:
        listening.ended.set()
        with suppress(OSError):
            listening.stop()
        thread.join()


class _Server(ThreadingHTTPServer):
    """The proxy's listening socket, and what its requests share."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, upstream: str, choose: Choice) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.proxy = upstream, FaultyProxy(f"http://127.0.0.1:{self.server_port}")
        self.ended = threading.Event()
        self._choose, self._lock, self._num_requests = choose, threading.Lock(), 0

    def fault_of(self, line: str) -> str | None:
        with self._lock:
            fault = self._choose(line, self._num_requests)
            self._num_requests += 1
            # A flip needs a byte, which is known only when the request is passed on.
            if fault and fault not in FLIPS:
                self.proxy.done[fault] += 1
        return fault

    def flipped(self, content: bytes, fault: str) -> bytes:
        if not content:
            return content
        with self._lock:
            self.proxy.done[fault] += 1
        # The two kinds flip different bytes: one must not undo the other.
        place = random.Random(f"{fault} {len(content)}").randrange(len(content))
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    def stop(self) -> None:
        with self._lock:
            self.shutdown()
            self.server_close()

    def shutdown_request(self, request: Any) -> None:
        # Without the goodbye that would come before a reset.
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault_of(f"{self.command} {self.path}")
        if fault == "hang":
            self.server.ended.wait()
        if fault == "down":
            # In another thread: this one would wait for the server's loop, which waits for it.
            threading.Thread(target=self.server.stop).start()
        if fault in REFUSALS:
            self.refuse(*REFUSALS[fault])
        elif fault in ("reset", "hang", "down"):
            self.reset()
        else:
            self.pass_on(body, fault)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

    def pass_on(self, body: bytes, fault: str | None) -> None:
        if fault == "flip_upload":
            body = self.server.flipped(body, fault)
        answer, content = self.ask(body, times=2 if fault == "twice" else 1)
        if fault == "lost":
            self.reset()
            return
        if fault == "flip_answer":
            content = self.server.flipped(content, fault)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content)

    def ask(self, body: bytes, *, times: int) -> tuple[http.client.HTTPResponse, bytes]:
        """Asks the real server; returns its last answer and what that holds."""
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        headers["Content-Length"] = str(len(body))
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            for _ in range(times):
                connection.request(self.command, self.path, body or None, headers)
                answer = connection.getresponse()
                content = answer.read()
        finally:
            connection.close()
        return answer, content

    def refuse(self, status: int, code: str) -> None:
        content = f"<Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

    def reset(self) -> None:
        # Without lingering, the end of a connection is a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test's output clean."""
