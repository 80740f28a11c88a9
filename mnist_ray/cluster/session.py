"""A Ray to work on: the cluster whose job this is, or one of our own on this machine."""

import io
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

import ray

import mnist_ray
from mnist_ray.cluster.ray_private import on_loopback, session_folder
from mnist_ray.cluster.resources import Needs, await_workers, check_storage, watched
from mnist_ray.config.placement import Placement, on_cluster
from mnist_ray.errors import ClusterError, ConfigError
from mnist_ray.interruption import deferred

# Ray Train takes what its workers report when it asks whether they are alive: every 2 s, so long would an epoch last.
_SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
# The watcher for nodes that are taken away costs a process and is of no use on this machine. What the object store no
# longer needs it gives back once a second: at full speed it would hold 100 MiB of images by then.
_LOCAL_SETTINGS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_free_objects_period_milliseconds": "50"}

# What Ray calls the folder of a session, with the time in it; the process's id follows.
_SESSION = "session_2026-01-01_00-00-00_000000"


@contextmanager
def ray_session(needs: Needs, placement: Placement) -> Iterator[bool]:
    """Connects to the job's cluster, or starts a single-node Ray and stops it after.

    Yields:
      Whether the workers get a GPU each.

    Raises:
      ConfigError: RAY_TMPDIR can't be written, or its path is too long.
      ClusterError: the cluster can't be reached, or lacks CPUs or GPUs after the deadline.
      RunFailedError: it has lost too many of them for longer than the deadline.
      StorageError: the storage is a folder of one machine, and the cluster has several.
    """
    private = _private_folder()
    try:
        with _session(needs, placement, private.name) as use_gpu:
            yield use_gpu
    finally:
        with deferred():
            private.cleanup()


def _private_folder() -> "tempfile.TemporaryDirectory[str]":
    """Makes the folder of a Ray of our own: Ray lets every user of this machine write its sockets and logs."""
    # In /tmp and with a short name: Linux allows the path of a socket 107 bytes, macOS 103.
    parent = os.environ.get("RAY_TMPDIR") or "/tmp"
    try:
        private = tempfile.TemporaryDirectory(prefix="ray-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigError(f"RAY_TMPDIR={parent}: {error.strerror}; name a folder that can be written") from None
    most = 103 if sys.platform == "darwin" else 107
    longest = len(os.fsencode(f"{private.name}/ray/{_SESSION}_{os.getpid()}/sockets/plasma_store"))
    if longest > most and not on_cluster():
        private.cleanup()
        shorter = len(os.fsencode(os.path.abspath(parent))) - (longest - most)
        raise ConfigError(
            f"RAY_TMPDIR={parent}: the paths of Ray's sockets there would have {longest} bytes and may have {most}; "
            f"name a folder whose path has {shorter} bytes or fewer, such as /tmp"
        )
    return private


@contextmanager
def _session(needs: Needs, placement: Placement, scratch: str) -> Iterator[bool]:
    for name, value in {**_SETTINGS, **({} if on_cluster() else _LOCAL_SETTINGS)}.items():
        os.environ.setdefault(name, value)
    try:
        try:
            # A Ray that is interrupted while it starts leaves processes behind.
            with deferred():
                _connect() if on_cluster() else _start_local(f"{scratch}/ray")
        except SystemExit:
            # Ray's own handler of SIGTERM, in force while it starts.
            signal.raise_signal(signal.SIGTERM)
            raise
        # What Ray says of a lost worker goes to stdout, where a command's results belong.
        with redirect_stdout(sys.stderr):
            use_gpu = await_workers(needs, placement, may_grow=on_cluster())
            check_storage(needs, placement)
            with watched(needs, placement, "GPU" if use_gpu else "CPU"):
                yield use_gpu
    finally:
        # What Ray has left to say comes here: repetitions, and of workers that were stopped in their work on purpose.
        # One that is shut down by halves leaves processes and files behind.
        with deferred(), redirect_stdout(io.StringIO()):
            ray.shutdown()


def _connect() -> None:
    address = os.environ["RAY_ADDRESS"]
    # A job's own folder goes when another node of the same machine gets the job's files, to the same place; libraries
    # that ask where they are would fail then.
    os.chdir("/")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"RAY_ADDRESS={address}: {_line(error)}") from None


def _start_local(scratch: str) -> None:
    root = Path(mnist_ray.__file__).parent.parent
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        # Otherwise gloo listens where the machine's name leads, which may be a network's address.
        environment["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    group = os.getpgrp()
    token = Path.home() / ".ray" / "auth_token"
    _make_private_folder(token.parent)
    with on_loopback():
        # "local": without it ray.init attaches to any Ray that it finds on this machine, somebody else's too.
        ray.init(
            address="local",
            include_dashboard=False,
            **session_folder(scratch),
            # Its helpers' logs would bury the epochs' lines; what matters of them comes back as an exception.
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": environment},
        )
    if os.getpgrp() != group:
        # ray.init leaves it for a group of its own, where a terminal's Ctrl-C doesn't reach what make or a script runs.
        os.setpgid(0, group)
    if token.is_file():
        # Ray writes its token readable for everybody.
        token.chmod(0o600)


def _make_private_folder(folder: Path) -> None:
    """Makes a folder that nobody else can look into, before Ray writes its token there for everybody to read."""
    # Without a home that can be written there is no token either, or Ray says why not.
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
