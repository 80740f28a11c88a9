"""A loopback HTTP server in the place of torchvision's mirrors."""

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Mirror:
    """Serves files by name; `announced` bytes may exceed what is sent, as when a connection breaks off."""

    files: dict[str, bytes] = field(default_factory=dict)
    announced: dict[str, int] = field(default_factory=dict)
    status: int = 200
    on_get: Callable[[str], None] = lambda _: None
    requested: list[str] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def serve(mirror: Mirror) -> Iterator[Mirror]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # The client may be gone before its answer: that is what some tests are about.
            with contextlib.suppress(ConnectionError):
                self.answer(self.path.rsplit("/", 1)[-1])

        def answer(self, name: str) -> None:
            mirror.requested.append(name)
            mirror.on_get(name)
            if mirror.status != 200 or name not in mirror.files:
                self.send_error(mirror.status if mirror.status != 200 else 404)
                return
            content = mirror.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(mirror.announced.get(name, len(content))))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Keeps the test output free of access lines."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    mirror.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield mirror
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
