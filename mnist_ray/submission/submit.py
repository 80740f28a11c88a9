"""Submits a job to a cluster: ships only the code, checks the resources, passes the job to Ray's job API."""

import contextlib
import itertools
import math
import os
import re
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import mnist_ray
from mnist_ray.config.placement import not_shared
from mnist_ray.config.requirements import REQUIREMENTS
from mnist_ray.errors import ClusterError, ConfigError, ConflictError, StorageError
from mnist_ray.storage.proxies import keep_off_proxies
from mnist_ray.submission.job_api import (
    CONNECT_TIMEOUT_S,
    JobClient,
    NotReady,
    as_ray_answers,
    get_json,
    is_not_ready,
    jobs_list,
    last_line,
    while_starting,
)
from mnist_ray.text.escape import say_line

# The dashboard refuses 100 MiB; the package is far below 1 MiB, so more is a mistake.
MAX_STAGED_BYTES = 20 << 20
CONSTRAINTS = "constraints.txt"

_PACKAGE = Path(mnist_ray.__file__).parent
_ENVIRONMENT = threading.Lock()
# Needed by the job and not secret: everyone who reaches the dashboard can read these.
_PASSED_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "MLFLOW_TRACKING_URI",
    "MNIST_RAY_DATA",
)


@contextlib.contextmanager
def stage_working_dir(
    config_yaml: str | None = None,
    *,
    pip: bool = False,
    package: Path = _PACKAGE,
    jobs: Path | None = None,
    files: Mapping[str, Path] = MappingProxyType({}),
) -> Iterator[Path]:
    """Yields a temporary folder with only the files that a job needs: two folders' code and the page's template.

    Args:
      config_yaml: text to ship as job.yaml.
      files: the code of the user's own networks, by its place in the folder.
      pip: whether to ship constraints.txt with the versions for pip to install.
      package: the folder shipped as mnist_ray/.
      jobs: the folder shipped as jobs/; by default the package's _jobs (wheel) or the one next to it (checkout).

    Raises:
      FileNotFoundError: one of the two folders holds no *.py file.
      ConfigError: the files exceed 20 MiB.
    """
    if jobs is None:
        jobs = _installed_or_beside(package, "jobs")
    with tempfile.TemporaryDirectory(prefix="mnist-ray-") as name:
        folder = Path(name)
        size = _copy_code(package, folder / "mnist_ray") + _copy_code(jobs, folder / "jobs")
        if pip:
            shutil.copyfile(_installed_or_beside(package, CONSTRAINTS), folder / CONSTRAINTS)
        if config_yaml is not None:
            size += (folder / "job.yaml").write_text(config_yaml, encoding="utf-8")
        size += sum(_copy(source, folder / place) for place, source in files.items())
        if size > MAX_STAGED_BYTES:
            raise ConfigError(f"job files: {size} bytes; the code and config of a job must stay under 20 MiB")
        yield folder


def _installed_or_beside(package: Path, name: str) -> Path:
    """Returns a path that is inside the package in a wheel and next to it in a checkout."""
    installed = package / f"_{name}"
    return installed if installed.exists() else package.parent / name


def _copy_code(source: Path, target: Path) -> int:
    size = 0
    # An evaluation writes its report, which needs the page's template.
    for path in sorted([*source.rglob("*.py"), *source.rglob("templates/*.html")]):
        relative = path.relative_to(source)
        # A link could point anywhere, and a hidden folder may be a virtual environment.
        if path.is_symlink() or not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        size += _copy(path, target / relative)
    if not target.is_dir():
        raise FileNotFoundError(f"{source}: no *.py file to ship to the cluster")
    return size


def _copy(source: Path, target: Path) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target.stat().st_size


@dataclass(frozen=True)
class Submitted:
    """A job on a cluster.

    Attributes:
      job_id: its id.
      is_new: whether it was submitted now; if not, the same job was already running.
    """

    job_id: str
    is_new: bool


def submit(
    client: JobClient,
    *,
    script: str,
    arguments: Sequence[str],
    working_dir: Path,
    name: str,
    metadata: Mapping[str, str],
    resources: Mapping[str, float] | None = None,
    local_storage: str | None = None,
    variables: Mapping[str, str] | None = None,
    pip: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Submitted:
    """Uploads the working folder and submits jobs/<script>.py in it, unless the same job is running.

    Args:
      client: of the cluster.
      script: name of a script in jobs/, without .py.
      arguments: its command line; each argument arrives unchanged, whatever characters it holds.
      working_dir: the folder from stage_working_dir.
      name: the job's id, with a numeric suffix if earlier jobs have used it.
      metadata: text to store with the job; its key asked, a hash of the whole request, distinguishes jobs of the same
        name. Like the arguments, it is readable by everyone who reaches the dashboard.
      resources: total resources of the job's workers, such as {"CPU": 2, "GPU": 1}.
      local_storage: a folder that all nodes must share, or None.
      variables: further environment variables for the job; not secret either.
      pip: whether the cluster installs the job's dependencies in the versions of constraints.txt.
      environ: source of the few variables passed to the job: no keys, no tokens.

    Raises:
      ClusterError: the cluster lacks the resources, has another Ray version, or refuses the job.
      ConfigError: AWS_ENDPOINT_URL or MLFLOW_TRACKING_URI carries credentials.
      ConflictError: another job of that name is running.
      StorageError: the folder is local and the cluster has several nodes.
    """
    entrypoint = shlex.join(["python", f"jobs/{script}.py", *arguments])
    runtime_env: dict[str, Any] = {
        "working_dir": str(working_dir),
        "env_vars": {**job_environment(environ), **(variables or {})},
    }
    if pip:
        runtime_env["pip"] = _pip_packages()
    check_version(client)
    if local_storage is not None and (num_nodes := len(_nodes(client))) > 1:
        raise StorageError(not_shared(local_storage, num_nodes))
    check_resources(client, resources or {})
    while True:
        job_id, runs = _free_id(client, name, metadata)
        if runs:
            return Submitted(job_id, is_new=False)
        # False if a concurrent submission has taken the id since the check.
        if while_starting(lambda: _submit(client, entrypoint, job_id, runtime_env, metadata)):  # noqa: B023
            return Submitted(job_id, is_new=True)


def _free_id(client: JobClient, name: str, metadata: Mapping[str, str]) -> tuple[str, bool]:
    """Returns the id of the same job if it is running, and True; otherwise a free id, and False."""
    taken = {job.job_id: job for job in jobs_list(client) if re.fullmatch(rf"{re.escape(name)}(\.\d+)?", job.job_id)}
    for job in taken.values():
        if job.has_ended:
            continue
        if job.metadata.get("asked") != metadata["asked"]:
            raise ConflictError(
                f"job {job.job_id!r}: runs on {client.address} with other settings; wait for its end, stop it, or "
                "choose another --name"
            )
        return job.job_id, True
    ids = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(2)))
    return next(job_id for job_id in ids if job_id not in taken), False


def _submit(
    client: JobClient, entrypoint: str, job_id: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
) -> bool:
    """Submits a job; returns False if the cluster already has a job with that id.

    Raises:
      NotReady: the head has just started.
      ClusterError: the cluster refuses the job.
    """
    from mnist_ray.cluster.job_client import send_job

    try:
        with _api_server(client.address):
            send_job(client.address, client.headers, entrypoint, job_id, runtime_env, metadata)
    except (RuntimeError, OSError) as error:
        if "already exists" in str(error):
            return False
        refused = f"{client.address}: refused the job: {last_line(str(error))}"
        raise (NotReady if is_not_ready(str(error)) else ClusterError)(refused) from error
    return True


def _pip_packages() -> list[str]:
    # Ray substitutes the path of the unpacked working folder. pip must not replace Ray itself.
    constraints = f"-c ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{CONSTRAINTS}"
    return [constraints, *(f"{package}>={least}" for package, least in REQUIREMENTS.items() if package != "ray")]


def check_version(client: JobClient) -> None:
    """Checks that a cluster's Ray version matches the local one.

    Raises:
      ClusterError: the minor versions differ.
    """
    here = version("ray")
    if client.ray_version.split(".")[:2] != here.split(".")[:2]:
        raise ClusterError(
            f"{client.address}: has Ray {client.ray_version} and this machine has {here}; "
            f"use an image with Ray {here}, or install ray=={client.ray_version} here"
        )


def job_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that a job gets from the launcher's environment.

    Raises:
      ConfigError: a URL among them carries credentials, which the cluster would show to everyone.
    """
    for name, where in (("AWS_ENDPOINT_URL", "S3"), ("MLFLOW_TRACKING_URI", "MLflow")):
        if "@" in urlsplit(environ.get(name, "")).netloc:
            raise ConfigError(
                f"{name}: an endpoint of a submitted job holds no user name or password (not shown here); "
                f"give the cluster's nodes their own {where} credentials"
            )
    passed = {name: environ[name] for name in _PASSED_VARIABLES if environ.get(name)}
    # Ray decodes a job's log as strict UTF-8: one invalid byte would make the whole log unreadable.
    return {**passed, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}


@contextlib.contextmanager
def _api_server(address: str) -> Iterator[None]:
    # Ray's environment variables override its address argument, and they are process-wide: hence the lock.
    with _ENVIRONMENT:
        keep_off_proxies(address)
        before = os.environ.get("RAY_API_SERVER_ADDRESS")
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        try:
            yield
        finally:
            if before is None:
                del os.environ["RAY_API_SERVER_ADDRESS"]
            else:
                os.environ["RAY_API_SERVER_ADDRESS"] = before


def check_resources(client: JobClient, needed: Mapping[str, float]) -> None:
    """Checks that a cluster's nodes, busy or not, have the resources for a job.

    Never refuses a cluster that may grow or doesn't say whether it may: a line on stderr says what is missing.

    Args:
      needed: total resources of the job's workers, such as {"CPU": 2, "GPU": 1}.

    Raises:
      ClusterError: the cluster can't grow and lacks something.
    """
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while missing := _missing_resources(_nodes(client), needed):
        may_grow = _may_grow(client)
        if may_grow is False:
            raise ClusterError(f"{client.address}: {missing}; ask for less or add nodes")
        # A new head takes some seconds to report its nodes and its autoscaler.
        if may_grow or time.monotonic() > deadline:
            say_line(
                f"note: {client.address}: {missing}; the job waits until the cluster has grown (--resource-timeout)"
            )
            return
        time.sleep(1)


def _missing_resources(nodes: Sequence[Mapping[str, float]], needed: Mapping[str, float]) -> str:
    for name, amount in sorted(needed.items()):
        there = math.fsum(node.get(name, 0) for node in nodes)
        if amount > there:
            return f"the job needs {amount:g} {name} and the cluster has {there:g}"
    return ""


def _nodes(client: JobClient) -> list[dict[str, float]]:
    with as_ray_answers(client):
        answer = get_json(client, "/api/v0/nodes?detail=1&limit=10000")
        return [node["resources_total"] for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]


def _may_grow(client: JobClient) -> bool | None:
    """Tells whether an autoscaler may add nodes; None if the head hasn't reported it yet."""
    with as_ray_answers(client):
        cluster = get_json(client, "/api/cluster_status")["data"]["clusterStatus"]
    if cluster is None:
        # Autoscaler v2 reports elsewhere; a head without an autoscaler looks the same.
        return True
    report = cluster.get("autoscalerReport")
    if report is None:
        return None
    # A read-only autoscaler invents a type for each node, named after it.
    types = report.get("nodeTypeMapping") or {}
    return not types or any(kind != f"node_{node_id}" for node_id, kind in types.items())
