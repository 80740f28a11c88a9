"""A Ray that mnist-ray starts for itself, as seen from outside."""

import ipaddress
import itertools
import os
import re
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray.cluster.session import _private_folder
from mnist_ray.errors import ConfigError
from tests.support.doing_lines import without_doing
from tests.support.processes import descendants, listening, title_of, wait_until_gone
from tests.support.ray_jobs import run_here
from tests.test_security import CANARIES, files_below, leaks

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return ((isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address).is_loopback


def test_a_local_ray_listens_on_the_loopback_keeps_to_one_user_and_ends_at_a_signal_with_its_workers(
    tmp_path: Path,
) -> None:
    ray_folder = tmp_path / ".ray"
    ray_folder.mkdir(mode=0o755)
    hidden = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "GLOO_SOCKET_IFNAME")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    keys = {name: secret for name, secret in CANARIES.items() if name.startswith("AWS_")}
    environment = {**inherited, **keys, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mnist_ray", "train", "--dataset", "digits", "--epochs", "1000"]
    command += ["--num-workers", "2", "--storage", str(tmp_path / "results"), "--name", "a"]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, umask=0o022
    ) as process:
        assert process.stderr is not None
        lines = [*itertools.takewhile(lambda line: "epoch 1" not in line, process.stderr)]
        pids = [process.pid, *descendants(process.pid, title=b"")]
        (ray_socket,) = {*re.findall(r"--raylet_socket_name=(\S+)", " ".join(map(title_of, pids)))}
        scratch = Path(ray_socket).parents[3]
        mode = scratch.stat().st_mode
        sockets = [(address, title_of(pid)) for address, pid in listening(pids)]
        workers = descendants(process.pid, title=b"RayTrainWorker")
        files = list(files_below(scratch))
        process.send_signal(signal.SIGTERM)
        lines += process.stderr.read().splitlines()
    assert process.returncode == 143, lines
    assert [line for line in lines if "mnist-ray:" in line] == ["mnist-ray: terminated; the same command goes on"]
    assert not any("Traceback" in line for line in lines), lines
    assert len(workers) == 2
    # They were told to end; on a busy machine their end may take a moment longer than the command's.
    wait_until_gone(lambda: [pid for pid in workers if Path(f"/proc/{pid}").exists()])
    assert len([title for address, title in sockets if is_loopback(address)]) >= 10, sockets
    # The port where torch's two workers find each other; torch listens everywhere and can't be told not to.
    exposed = [title for address, title in sockets if not is_loopback(address)]
    assert [title.partition(".")[0] for title in exposed] == ["ray::RayTrainWorker"]
    assert (scratch.name.startswith("ray-"), oct(mode), scratch.exists()) == (True, "0o40700", False)
    assert leaks(iter(files), marker="RAY_TRAIN_HEALTH_CHECK_INTERVAL_S") == []
    assert oct(ray_folder.stat().st_mode) == "0o40700"
    assert oct((ray_folder / "auth_token").stat().st_mode) == "0o100600"


def test_a_folder_whose_path_is_too_long_for_rays_sockets_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("a" * 100)
    folder.mkdir()
    train = ["train", "--dataset", "digits", "--num-workers", "2", "--storage", str(tmp_path / "results")]
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    done = run_here(*train, "--name", "a")
    said = without_doing(done.log)
    assert (done.code, said.count("\n")) == (2, 1), done.log
    assert said.startswith(f"mnist-ray: error: RAY_TMPDIR={folder}: the paths of Ray's sockets there would have ")
    assert said.endswith("or fewer, such as /tmp\n")
    assert list(folder.iterdir()) == []
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "nowhere"))
    where = f"RAY_TMPDIR={tmp_path}/nowhere"
    done = run_here(*train, "--name", "a")
    said = without_doing(done.log)
    assert done.code == 2
    assert said == f"mnist-ray: error: {where}: No such file or directory; name a folder that can be written\n"


def test_the_longest_path_of_rays_sockets_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with _private_folder() as name:
        rest = (
            len(name) - len("/tmp") + len(f"/ray/session_2026-11-29_06-36-41_369898_{os.getpid()}/sockets/plasma_store")
        )
    longest = Path("/tmp") / secrets.token_hex(50)[: 107 - rest - len("/tmp/")]
    for folder, fits in ((longest, True), (longest.with_name(f"{longest.name}a"), False)):
        folder.mkdir()
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        try:
            if fits:
                with _private_folder() as name:
                    assert Path(name).is_dir()
            else:
                with pytest.raises(ConfigError, match=f"have 108 bytes and may have 107; .* has {len(str(longest))} b"):
                    _private_folder()
        finally:
            folder.rmdir()
