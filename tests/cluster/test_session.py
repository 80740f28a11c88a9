"""A Ray that mnist-ray starts for itself, as seen from outside."""

import ipaddress
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import descendants, listening, title_of

ROOT = Path(__file__).parent.parent.parent

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return ((isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address).is_loopback


def test_a_local_ray_listens_on_the_loopback_and_keeps_its_token_and_its_folder_to_one_user(tmp_path: Path) -> None:
    ray_folder = tmp_path / ".ray"
    ray_folder.mkdir(mode=0o755)
    hidden = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "GLOO_SOCKET_IFNAME")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    environment = {**inherited, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mnist_ray", "train", "--dataset", "digits", "--epochs", "1000"]
    command += ["--num-workers", "2", "--storage", str(tmp_path / "results"), "--name", "a"]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, umask=0o022
    ) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(2)]
        pids = [process.pid, *descendants(process.pid, title=b"")]
        (ray_socket,) = {*re.findall(r"--raylet_socket_name=(\S+)", " ".join(map(title_of, pids)))}
        scratch = Path(ray_socket).parents[3]
        mode = scratch.stat().st_mode
        sockets = [(address, title_of(pid)) for address, pid in listening(pids)]
        process.send_signal(signal.SIGINT)
        lines.append(process.stderr.read())
    assert process.returncode == 130, lines
    assert len([title for address, title in sockets if is_loopback(address)]) >= 10, sockets
    # The port where torch's two workers find each other; torch listens everywhere and can't be told not to.
    exposed = [title for address, title in sockets if not is_loopback(address)]
    assert [title.partition(".")[0] for title in exposed] == ["ray::RayTrainWorker"]
    assert (scratch.name.startswith("ray-"), oct(mode), scratch.exists()) == (True, "0o40700", False)
    assert oct(ray_folder.stat().st_mode) == "0o40700"
    assert oct((ray_folder / "auth_token").stat().st_mode) == "0o100600"
