"""Submit a job to a cluster: ship the code and nothing else, check the resources, hand it to Ray's job API."""

import contextlib
import math
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import mnist_ray
from mnist_ray.cluster.job_api import CONNECT_TIMEOUT_S, JobClient, as_ray_answers, get_json, last_line, say
from mnist_ray.errors import ClusterError, ConfigError, ConflictError

# The dashboard refuses 100 MiB; the package is far below 1 MiB, so more is a mistake.
MAX_STAGED_BYTES = 20 << 20

_PACKAGE = Path(mnist_ray.__file__).parent
# Not secret, and needed by the job. Whatever stands here can be read by everybody who can reach the dashboard.
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
    config_yaml: str | None = None, *, package: Path = _PACKAGE, jobs: Path | None = None
) -> Iterator[Path]:
    """Yields a temporary folder with all that a job needs and nothing else: two folders' code, and the page's template.

    Args:
      config_yaml: text to ship as job.yaml.
      package: the folder that is shipped as mnist_ray/.
      jobs: the folder that is shipped as jobs/; by default the package's _jobs (a wheel) or the one beside it.

    Raises:
      FileNotFoundError: one of the two folders holds no *.py file.
      ConfigError: the files exceed 20 MiB.
    """
    if jobs is None:
        installed = package / "_jobs"
        jobs = installed if installed.is_dir() else package.parent / "jobs"
    with tempfile.TemporaryDirectory(prefix="mnist-ray-") as name:
        folder = Path(name)
        size = _copy_code(package, folder / "mnist_ray") + _copy_code(jobs, folder / "jobs")
        if config_yaml is not None:
            size += (folder / "job.yaml").write_text(config_yaml, encoding="utf-8")
        if size > MAX_STAGED_BYTES:
            raise ConfigError(f"job files: {size} bytes; the code and config of a job must stay under 20 MiB")
        yield folder


def _copy_code(source: Path, target: Path) -> int:
    size = 0
    # The page of a report is a template, and an evaluation writes that page.
    for path in sorted([*source.rglob("*.py"), *source.rglob("templates/*.html")]):
        relative = path.relative_to(source)
        # A link could lead to anything, and a hidden folder may be an environment.
        if path.is_symlink() or not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        size += copy.stat().st_size
    if not target.is_dir():
        raise FileNotFoundError(f"{source}: no *.py file to ship to the cluster")
    return size


def submit(
    client: JobClient,
    *,
    script: str,
    arguments: Sequence[str],
    working_dir: Path,
    submission_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
    resources: Mapping[str, float] | None = None,
    entrypoint_num_cpus: float = 0,
    variables: Mapping[str, str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Uploads the working folder, submits jobs/<script>.py in it and returns the job's id.

    Args:
      script: name of a script in jobs/, without .py.
      arguments: its command line; each arrives as it is, whatever characters it holds.
      working_dir: what stage_working_dir yields.
      submission_id: id of the new job, made up by Ray by default.
      metadata: text to store with the job; like the arguments, everybody who reaches the dashboard can read it.
      resources: what the job's workers take together, such as {"CPU": 2, "GPU": 1}.
      entrypoint_num_cpus: CPUs that the entry point takes on one node, beside the workers.
      variables: what else the job finds in its environment; not secret either.
      environ: source of the few variables that the job gets: no keys, no tokens.

    Raises:
      ClusterError: the cluster lacks the resources, or refuses the job.
      ConfigError: AWS_ENDPOINT_URL or MLFLOW_TRACKING_URI carries credentials.
      ConflictError: a job has that id already.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    entrypoint = shlex.join(["python", f"jobs/{script}.py", *arguments])
    runtime_env = {"working_dir": str(working_dir), "env_vars": {**job_environment(environ), **(variables or {})}}
    check_resources(client, resources or {}, entrypoint_num_cpus=entrypoint_num_cpus)
    try:
        with _api_server(client.address):
            ray_client = JobSubmissionClient(client.address, headers=client.headers)
            job_id = ray_client.submit_job(
                entrypoint=entrypoint,
                submission_id=submission_id,
                runtime_env=runtime_env,
                metadata=dict(metadata or {}),
                entrypoint_num_cpus=entrypoint_num_cpus,
            )
    except (RuntimeError, OSError, AuthenticationError) as error:
        if "already exists" in str(error):
            raise ConflictError(
                f"job {submission_id!r}: {client.address} has a job with this id already; choose another id"
            ) from None
        raise ClusterError(f"{client.address}: refused the job: {last_line(str(error))}") from error
    return str(job_id)


def job_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that a job gets from the launcher's environment.

    Raises:
      ConfigError: a URL among them carries credentials, which the cluster would show to everybody.
    """
    for name, where in (("AWS_ENDPOINT_URL", "S3"), ("MLFLOW_TRACKING_URI", "MLflow")):
        if "@" in urlsplit(environ.get(name, "")).netloc:
            raise ConfigError(
                f"{name}: an endpoint of a submitted job holds no user name or password (not shown here); "
                f"give the cluster's nodes their own {where} credentials"
            )
    passed = {name: environ[name] for name in _PASSED_VARIABLES if environ.get(name)}
    # Ray reads a job's log as strict UTF-8: one other byte, and the whole log is withheld.
    return {**passed, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}


@contextlib.contextmanager
def _api_server(address: str) -> Iterator[None]:
    # Ray lets its variables override the address that it is given.
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def check_resources(client: JobClient, needed: Mapping[str, float], *, entrypoint_num_cpus: float = 0) -> None:
    """Checks that a cluster's nodes hold what a job takes, busy or not.

    A cluster that may grow, or that doesn't say whether it may, is never refused: a line on stderr tells what is
    missing now.

    Args:
      needed: what the job's workers take together, such as {"CPU": 2, "GPU": 1}.
      entrypoint_num_cpus: CPUs that the entry point takes on one node, beside the workers.

    Raises:
      ClusterError: the cluster can't grow and lacks something.
    """
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while missing := _missing_resources(_nodes(client), needed, entrypoint_num_cpus):
        may_grow = _may_grow(client)
        if may_grow is False:
            raise ClusterError(f"{client.address}: {missing}; ask for less or add nodes")
        # A head that has just started reports its nodes and its autoscaler after some seconds.
        if may_grow or time.monotonic() > deadline:
            say(f"note: {client.address}: {missing}; the job waits until the cluster has grown")
            return
        time.sleep(1)


def _missing_resources(
    nodes: Sequence[Mapping[str, float]], needed: Mapping[str, float], entrypoint_num_cpus: float
) -> str:
    total_needed = {**needed, "CPU": needed.get("CPU", 0) + entrypoint_num_cpus}
    for name, amount in sorted(total_needed.items()):
        there = math.fsum(node.get(name, 0) for node in nodes)
        if amount > there:
            return f"the job needs {amount:g} {name} and the cluster has {there:g}"
    largest = max((node.get("CPU", 0) for node in nodes), default=0)
    if entrypoint_num_cpus > largest:
        return f"the entry point needs {entrypoint_num_cpus:g} CPU on one node and the largest node has {largest:g}"
    return ""


def _nodes(client: JobClient) -> list[dict[str, float]]:
    with as_ray_answers(client):
        answer = get_json(client, "/api/v0/nodes?detail=1&limit=10000")
        return [node["resources_total"] for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]


def _may_grow(client: JobClient) -> bool | None:
    """Tells whether an autoscaler may add nodes; None while the head has not said so."""
    with as_ray_answers(client):
        cluster = get_json(client, "/api/cluster_status")["data"]["clusterStatus"]
    if cluster is None:
        # Autoscaler v2 reports elsewhere, and a head without any reports nothing: the two look alike.
        return True
    report = cluster.get("autoscalerReport")
    if report is None:
        return None
    # A cluster that only watches its nodes invents a type for each, named after the node.
    types = report.get("nodeTypeMapping") or {}
    return not types or any(kind != f"node_{node_id}" for node_id, kind in types.items())
