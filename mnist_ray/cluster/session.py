"""Provides a Ray session: the cluster that runs this job, or a single-node Ray on this machine."""

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
from mnist_ray.config.own_code import CODE_VARIABLE
from mnist_ray.config.placement import Placement, job_config, on_cluster
from mnist_ray.errors import ClusterError, ConfigError
from mnist_ray.interruption import deferred
from mnist_ray.text.escape import say_line
from mnist_ray.text.meanwhile import meanwhile

# Ray Train fetches reports with its health checks: at the default of 2 s every epoch would take at least as long.
_SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
# The preemption watcher costs a process and does nothing on a single machine. By default the object store frees objects
# once a second; at full speed 100 MiB of images accumulate in that time.
# The dashboard lists the runs of Ray Train; a local Ray has no dashboard.
_CLUSTER_SETTINGS = {"RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}
_LOCAL_SETTINGS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_free_objects_period_milliseconds": "50"}

# The pattern of Ray's session folder; the process id follows.
_SESSION = "session_2026-01-01_00-00-00_000000"


@contextmanager
def ray_session(needs: Needs, placement: Placement) -> Iterator[bool]:
    """Connects to the job's cluster, or starts a single-node Ray and stops it afterwards.

    Yields:
      Whether each worker gets a GPU.

    Raises:
      ConfigError: RAY_TMPDIR can't be written, or its path is too long.
      ClusterError: the cluster can't be reached, or lacks CPUs or GPUs after the timeout; or a program that calls
        mnist-ray has a Ray already.
      RunFailedError: the cluster lost too many of them for longer than the timeout.
      StorageError: the storage is a local folder, and the cluster has several nodes.
    """
    if ray.is_initialized():
        # Its workers would outlive an interrupted call, and lack the code of the user's own network.
        raise ClusterError("Ray: this program has one already, and mnist-ray brings its own; call ray.shutdown() first")
    private = _private_folder()
    try:
        with _session(needs, placement, private.name) as use_gpu:
            yield use_gpu
    finally:
        with deferred():
            private.cleanup()


def _private_folder() -> "tempfile.TemporaryDirectory[str]":
    """Makes a private folder for a local Ray, which makes its sockets and logs writable by every user."""
    # In /tmp and with a short name: a socket's path is limited to 107 bytes on Linux and 103 on macOS.
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
    for name, value in {**_SETTINGS, **(_CLUSTER_SETTINGS if on_cluster() else _LOCAL_SETTINGS)}.items():
        os.environ.setdefault(name, value)
    say_line(f"connecting to Ray at {os.environ['RAY_ADDRESS']}" if on_cluster() else "starting Ray (about 10 s)")
    try:
        try:
            # Interrupting Ray during its start would leave processes behind.
            with deferred():
                _connect() if on_cluster() else _start_local(f"{scratch}/ray")
        except SystemExit:
            # Raised by Ray's own SIGTERM handler, which is active during its start.
            signal.raise_signal(signal.SIGTERM)
            raise
        # Ray prints messages about lost workers on stdout, which is reserved for a command's results.
        with redirect_stdout(meanwhile()):
            use_gpu = await_workers(needs, placement, may_grow=on_cluster())
            check_storage(needs, placement)
            with watched(needs, placement, "GPU" if use_gpu else "CPU"):
                yield use_gpu
    finally:
        # Discard Ray's last output: repetitions, and messages about workers stopped on purpose. Defer signals: an
        # interrupted shutdown leaves processes and files behind.
        with deferred(), redirect_stdout(io.StringIO()):
            ray.shutdown()


def _connect() -> None:
    address = os.environ["RAY_ADDRESS"]
    # The job's working folder vanishes when another node on the same machine unpacks the job's files to the same place;
    # libraries that call getcwd would then fail.
    os.chdir("/")
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": _lacking_variables()},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"RAY_ADDRESS={address}: {' '.join(str(error).split())[:300]}") from None


def _lacking_variables() -> dict[str, str]:
    """Returns the variables that a job's workers need and that it was submitted without, as by Ray's own client."""
    needed = {**_CLUSTER_SETTINGS, "OMP_NUM_THREADS": "1", CODE_VARIABLE: os.environ.get(CODE_VARIABLE, "")}
    submitted = job_config().get("runtime_env", {}).get("env_vars", {})
    return {name: value for name, value in needed.items() if value and name not in submitted}


def _start_local(scratch: str) -> None:
    root = Path(mnist_ray.__file__).parent.parent
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        # Otherwise gloo listens on the address of the host name, which may be a network's.
        environment["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    group = os.getpgrp()
    token = Path.home() / ".ray" / "auth_token"
    _make_private_folder(token.parent)
    with on_loopback():
        # Without "local" ray.init attaches to any Ray that it finds on this machine, even another user's.
        ray.init(
            address="local",
            include_dashboard=False,
            **session_folder(scratch),
            # Ray's logs would bury the progress lines; errors that matter come back as exceptions.
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": environment},
        )
    if os.getpgrp() != group:
        # ray.init moves the process to its own group, where Ctrl-C doesn't reach a command run by make or a script.
        os.setpgid(0, group)
    if token.is_file():
        # Ray writes its token readable by everyone.
        token.chmod(0o600)


def _make_private_folder(folder: Path) -> None:
    """Makes a folder with mode 0700, before Ray writes its token there readable by everyone."""
    # If the home folder isn't writable, there is no token either, or Ray reports the error.
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
