"""Stand-ins for a cluster's dashboard, on the loopback."""

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version


class Dashboard:
    """An HTTP server with an answer to each path, or several: the last stays; remembers the requests."""

    def __init__(self, answers: Mapping[str, tuple[int, str] | list[tuple[int, str]]]) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.deleted: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_DELETE(self) -> None:
                server.deleted.append(self.path)
                self.do_GET()

            def do_GET(self) -> None:
                server.requests.append((self.path, self.headers["Authorization"]))
                answer = answers.get(self.path.partition("?")[0], (404, "nothing here"))
                if isinstance(answer, list):
                    answer = answer.pop(0) if answer[1:] else answer[0]
                status, text = answer
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

    def __enter__(self) -> "Dashboard":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


VERSION = {"/api/version": (200, '{"ray_version": "2.60.0"}')}
VERSION_HERE = {"/api/version": (200, json.dumps({"ray_version": version("ray")}))}
NODES = '{"data": {"result": {"result": [%s]}}}'
TWO_CPUS = '{"state": "ALIVE", "resources_total": {"CPU": 2.0}}'
DEAD = '{"state": "DEAD", "resources_total": {"CPU": 64.0}}'
FIXED = '{"data": {"clusterStatus": {"autoscalerReport": {"nodeTypeMapping": {"ab": "node_ab"}}}}}'
GROWING = '{"data": {"clusterStatus": {"autoscalerReport": {"nodeTypeMapping": {"ab": "ray.head.default"}}}}}'


def cluster(nodes: str, status: str) -> Dashboard:
    return Dashboard({"/api/v0/nodes": (200, NODES % nodes), "/api/cluster_status": (200, status)})
