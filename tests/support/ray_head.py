"""A real Ray head on this machine, apart from every other Ray: own ports, own temporary folder, own HOME."""

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import descendants

START_TIMEOUT_S = 90


@dataclass(frozen=True)
class RayHead:
    """A running head.

    Args:
      address: URL of its dashboard and job API.
      gcs_address: what ray.init(address=...) takes.
      environment: for child processes that talk to the head (their HOME, PATH, token).
      folder: its temporary files.
      pid: of the process that all others of it descend from; see end_machine.
    """

    address: str
    gcs_address: str
    environment: dict[str, str]
    folder: Path
    pid: int


@contextlib.contextmanager
def ray_head(
    token: str | None = None,
    num_cpus: int = 2,
    autoscaler: dict[str, Any] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[RayHead]:
    """Runs a head until the block ends.

    Args:
      token: with one, its token authentication is on.
      num_cpus: that it has for work.
      autoscaler: a cluster.yaml whose provider is Ray's fake one or a class below it; its autoscaler (v2) runs too.
      variables: what its environment has besides, such as the keys of a storage.
    """
    # In /tmp, since Ray's socket paths must stay under 107 characters.
    with tempfile.TemporaryDirectory(prefix="rh", dir="/tmp") as name:
        folder = Path(name)
        environment = {**_environment(folder / "home", token), **(variables or {})}
        gcs_port, dashboard_port, agent_port, client_port = _free_ports(4)
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--include-dashboard=true", f"--temp-dir={folder / 'ray'}", f"--num-cpus={num_cpus}"),
            *(
                f"--port={gcs_port}",
                f"--dashboard-port={dashboard_port}",
                f"--dashboard-agent-listen-port={agent_port}",
            ),
            *(f"--ray-client-server-port={client_port}", "--object-store-memory=100000000"),
            # A dead node is noticed after 3 s instead of 15.
            """--system-config={"health_check_period_ms":1000,"health_check_failure_threshold":3}""",
        ]
        if autoscaler:
            command += _with_autoscaler(autoscaler, environment, folder / "autoscaler.json", gcs_port)
        with _running(command, environment, folder / "head.log") as head:
            address = f"http://127.0.0.1:{dashboard_port}"
            node_ip = _wait_until_ready(head, address, token, folder / "head.log")
            yield RayHead(address, f"{node_ip}:{gcs_port}", environment, folder, head.pid)


@contextlib.contextmanager
def more_node(head: RayHead, num_cpus: int = 1) -> Iterator[int]:
    """Runs another node of a head's cluster until the block ends; yields its pid, see RayHead."""
    before = _alive_ids(head)
    log = head.folder / f"node-{secrets.token_hex(4)}.log"
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={head.gcs_address}", "--block"),
        *(f"--num-cpus={num_cpus}", "--disable-usage-stats", "--object-store-memory=100000000"),
    ]
    with _running(command, head.environment, log) as node:
        deadline = time.monotonic() + START_TIMEOUT_S
        # Another one that has just ended may still be counted, and leave meanwhile.
        while not (started := _alive_ids(head) - before):
            if node.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the node did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.1)
        yield node.pid
    while started & _alive_ids(head):
        time.sleep(0.1)


def _alive_ids(head: RayHead) -> set[object]:
    return {node["node_id"] for node in alive_nodes(head.address)}


def end_machine(pid: int) -> None:
    """Ends all processes of a head or node at once, those of its jobs too, as a machine that loses its power does."""
    for each in [pid, *descendants(pid, title=b"")]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def _with_autoscaler(config: dict[str, Any], environment: dict[str, str], path: Path, gcs_port: int) -> list[str]:
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    provider = {**config["provider"], "gcs_address": f"127.0.0.1:{gcs_port}", "head_node_id": FAKE_HEAD_NODE_ID}
    path.write_text(json.dumps({**config, "provider": provider}))
    environment |= {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        # Where the provider's class is.
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return [f"--autoscaling-config={path}", "--node-ip-address=127.0.0.1"]


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str], log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (
        open(log_path, "wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as head,
    ):
        try:
            yield head
        finally:
            _end(head)


def _environment(home: Path, token: str | None) -> dict[str, str]:
    home.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not re.match("RAY_|AWS_|MNIST_RAY_|PYTHON", name)}
    # The entry point of a job is `python ...`: it must find the interpreter that has Ray.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**inherited, "HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1"}
    return {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else environment


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_ready(head: subprocess.Popen[bytes], address: str, token: str | None, log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while head.poll() is None and time.monotonic() < deadline:
        if nodes := alive_nodes(address, token):
            return str(nodes[0]["node_ip"])
        time.sleep(0.2)
    raise RuntimeError(f"the Ray head did not start:\n{log.read_text(errors='replace')}")


def alive_nodes(address: str, token: str | None = None) -> list[dict[str, object]]:
    """Returns what a head's dashboard tells of its nodes that are alive; none while it is starting."""
    request = urllib.request.Request(f"{address}/api/v0/nodes?detail=1")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            nodes = json.load(response)["data"]["result"]["result"]
    except OSError:  # Not listening yet, or still starting (HTTP 5xx).
        return []
    return [node for node in nodes if node["state"] == "ALIVE"]


def _end(head: subprocess.Popen[bytes]) -> None:
    head.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(3)
    # Whatever outlived the head is in its session's process group.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
