"""Ray's job API over HTTP: lists a cluster's jobs, reads their state and logs, stops and deletes them."""

import asyncio
import io
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp

from mnist_ray.errors import ClusterError, ConfigError, ConflictError
from mnist_ray.storage.proxies import proxy_of, without_password
from mnist_ray.submission.address import WHERE_TOKENS_ARE, Token, is_here
from mnist_ray.text.escape import say_line

# aiohttp rounds up to the next second, so the timeout is at most 15 s.
CONNECT_TIMEOUT_S = 14.0
REQUEST_TIMEOUT_S = 60.0
# How long to wait for a head that has just started, and when to tell the user about it.
STARTING_S = 30.0
SAID_AFTER_S = 2.0
_PAUSE_S = 0.5
_Answer = TypeVar("_Answer")
_TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class JobClient:
    """A client of a cluster's job API.

    Args:
      address: URL without a trailing slash.
      token: the token sent with each request, or None.
      ray_version: the cluster's Ray version.
    """

    address: str
    token: Token | None = None
    ray_version: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        return {"Authorization": f"Bearer {self.token.value}"} if self.token else {}

    def proxy(self) -> str | None:
        """Returns the HTTP proxy for every request, or None.

        Raises:
          ClusterError: the proxy would see the token, or is not an HTTP proxy.
        """
        proxy, parts = proxy_of(self.address), urlsplit(self.address)
        if proxy and self.token and parts.scheme == "http":
            raise ClusterError(
                f"{self.address}: the proxy {without_password(proxy)} would see the token; use https, or set "
                f"NO_PROXY={parts.hostname} to go there directly"
            )
        return proxy


@dataclass(frozen=True)
class Job:
    """A cluster's record of a job; the job's environment is omitted on purpose.

    Args:
      status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
      message: Ray's message, possibly many lines.
      exit_code: exit code of the job's process; None before its end and if it was stopped or never started.
      start_time_s: seconds since 1970, as is end_time_s.
    """

    job_id: str
    status: str
    entrypoint: str
    message: str
    error_type: str | None
    exit_code: int | None
    start_time_s: float | None
    end_time_s: float | None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether the status is final."""
        return self.status in _TERMINAL

    @property
    def duration_s(self) -> float | None:
        """Seconds from the job's submission to its end, or until now."""
        end = self.end_time_s if self.has_ended else time.time()
        return end - self.start_time_s if end and self.start_time_s else None


class Unreachable(ClusterError):
    """No HTTP answer; a retry may help."""


class NoHttp(Unreachable):
    """A server that speaks something else, as a cluster's GCS does."""


class NotReady(ClusterError):
    """A head that has just started has no agent for jobs yet."""


# Parts of Ray's HTTP 500 answers to a submission, and to other requests that need the agent.
_NOT_READY = ("No available agent to submit job", "Failed to get head node agent")


def is_not_ready(text: str) -> bool:
    """Tells whether an answer comes from a head that has just started."""
    return any(each in text for each in _NOT_READY)


def while_starting(ask: Callable[[], _Answer]) -> _Answer:
    """Returns an answer; retries for up to 30 s while the head is starting.

    Raises:
      ClusterError: the head is still not ready then.
    """
    begun, said = time.monotonic(), False
    while True:
        try:
            return ask()
        except NotReady as error:
            waited = time.monotonic() - begun
            if waited >= STARTING_S:
                raise ClusterError(
                    f"{error} Tried again for {STARTING_S:g} s: see dashboard_agent.log on the head, or try again later"
                ) from None
            if waited >= SAID_AFTER_S and not said:
                said = True
                say_line(f"note: {error} Trying again for {STARTING_S:g} s: the cluster may have just started")
        time.sleep(_PAUSE_S)


def via(proxy: str | None) -> str:
    """Returns the words for the proxy of a request."""
    return f" through the proxy {without_password(proxy)}" if proxy else ""


def jobs_list(client: JobClient) -> list[Job]:
    """Returns all submitted jobs that the cluster remembers, newest first."""
    with as_ray_answers(client):
        jobs = [_job(entry) for entry in get_json(client, "/api/jobs/") if entry["type"] == "SUBMISSION"]
    return sorted(jobs, key=lambda job: (job.start_time_s or 0, job.job_id), reverse=True)


def job_status(client: JobClient, job_id: str) -> Job:
    """Returns a job's state.

    Raises:
      ConfigError: the cluster doesn't know the job.
      ClusterError: the cluster does not answer.
    """
    with as_ray_answers(client):
        return _job(get_json(client, job_path(job_id), job_id=job_id))


def job_logs(client: JobClient, job_id: str) -> str:
    """Returns a job's log so far.

    Raises:
      ConfigError: the cluster doesn't know the job.
      ClusterError: the cluster does not answer, or can't read the log.
    """
    with as_ray_answers(client):
        return str(get_json(client, f"{job_path(job_id)}/logs", job_id=job_id)["logs"])


def job_stop(client: JobClient, job_id: str, *, timeout_s: float = 60.0) -> Job:
    """Stops a job and waits until it has ended; does nothing if it has already ended.

    Raises:
      ConfigError: the cluster doesn't know the job.
      ClusterError: the cluster does not answer, or the job has not ended after timeout_s seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not (job := job_status(client, job_id)).has_ended:
        if time.monotonic() > deadline:
            raise ClusterError(f"job {job_id!r}: asked to stop and still {job.status} after {timeout_s:g} s")
        # Repeat the request: a job that is still starting has no process to signal yet.
        get_json(client, f"{job_path(job_id)}/stop", job_id=job_id, method="POST")
        time.sleep(0.5)
    return job


def job_delete(client: JobClient, job_id: str) -> None:
    """Deletes the cluster's record and log of a job that has ended.

    Raises:
      ConfigError: the cluster doesn't know the job.
      ConflictError: the job has not ended.
      ClusterError: the cluster does not answer.
    """
    job = job_status(client, job_id)
    if not job.has_ended:
        raise ConflictError(
            f"job {job_id!r}: is {job.status}, and only a job that has ended can be deleted; "
            f"stop it with 'mnist-ray jobs stop {shlex.quote(job_id)} --address {client.address}'"
        )
    get_json(client, job_path(job_id), job_id=job_id, method="DELETE")


def job_path(job_id: str) -> str:
    """Returns the path of a job in the job API."""
    return f"/api/jobs/{quote(job_id, safe='')}"


@contextmanager
def as_ray_answers(client: JobClient) -> Iterator[None]:
    """Turns errors from reading a malformed answer into a ClusterError of one line.

    Raises:
      ClusterError: the answer is JSON but not in Ray's format.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ClusterError(
            f"{client.address}: the answer is not in a Ray dashboard's format ({type(error).__name__}: {error}); check "
            "the address, and Ray's version there"
        ) from error


def _job(entry: Mapping[str, Any]) -> Job:
    start, end = entry["start_time"], entry["end_time"]
    return Job(
        job_id=entry["submission_id"],
        status=entry["status"],
        entrypoint=entry["entrypoint"],
        message=entry["message"] or "",
        error_type=entry["error_type"],
        exit_code=entry["driver_exit_code"],
        start_time_s=start / 1000 if start else None,
        end_time_s=end / 1000 if end else None,
        metadata=entry["metadata"] or {},
    )


def get_json(client: JobClient, path: str, *, job_id: str | None = None, method: str = "GET") -> Any:
    """Sends a request to the job API and returns its answer's JSON.

    Args:
      path: path of the URL, with its first slash.
      job_id: the job in the path, for the message if the cluster doesn't know it.

    Raises:
      ConfigError: the cluster doesn't know the job.
      ClusterError: no answer, a refused token or an HTTP error.
    """

    def ask() -> tuple[int, str]:
        status, text = request(client, method, path, timeout_s=REQUEST_TIMEOUT_S)
        if status >= 500 and is_not_ready(text):
            raise NotReady(f"{client.address}{path}: HTTP {status}: {last_line(text)}.")
        return status, text

    status, text = while_starting(ask)
    if status == 404 and job_id is not None:
        raise ConfigError(
            f"job {job_id!r}: {client.address} knows no such job; "
            f"'mnist-ray jobs list --address {client.address}' shows those it knows"
        )
    if status != 200:
        raise ClusterError(f"{client.address}{path}: HTTP {status}{via(client.proxy())}: {last_line(text)}")
    try:
        return json.loads(text)
    except ValueError:
        raise ClusterError(f"{client.address}{path}: the answer is not JSON: {last_line(text)}") from None


def request(client: JobClient, method: str, path: str, *, timeout_s: float) -> tuple[int, str]:
    """Sends a request and returns the answer's status and text.

    Raises:
      Unreachable: no HTTP answer.
      ClusterError: the token is refused, or a proxy would see it.
    """
    proxy = client.proxy()

    async def fetch() -> tuple[int, str]:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with (
            aiohttp.ClientSession(headers=client.headers, timeout=timeout) as session,
            # A redirect could carry the token to another host.
            session.request(method, client.address + path, allow_redirects=False, proxy=proxy) as response,
        ):
            return response.status, await response.text(errors="replace")

    try:
        status, text = asyncio.run(fetch())
    except TimeoutError:
        raise Unreachable(
            f"{client.address}: no answer within {timeout_s:g} s{via(proxy)}; check the address"
        ) from None
    except (aiohttp.ClientError, OSError) as error:
        is_http = isinstance(error, aiohttp.ClientHttpProxyError) or not isinstance(error, aiohttp.ClientResponseError)
        raise (Unreachable if is_http else NoHttp)(
            f"{client.address}: no Ray dashboard reached{via(proxy)}: {_reason(error)}"
        ) from None
    if status in (401, 403):
        raise ClusterError(refused_token(client, f"HTTP {status}{via(proxy)}"))
    return status, text


def _reason(error: Exception) -> str:
    # aiohttp's text omits the reason of a failed connection, such as 'Connection refused'; errno has it.
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"it answers HTTP {error.status}"
    if isinstance(error, aiohttp.ClientResponseError):
        return "the server there does not speak HTTP; the dashboard's port is usually 8265"
    return last_line(str(error))


def refused_token(client: JobClient, answer: str) -> str:
    """Returns the message that a cluster wants a token, or another one."""
    fault = f"wrong token in {client.token.source}" if client.token else "a token is needed and none was found"
    condition = "" if is_here(client.address) else ", which only RAY_AUTH_MODE=token sends to another machine"
    return f"{client.address}: {answer}: {fault}; give this cluster's token in {WHERE_TOKENS_ARE}{condition}"


def last_line(text: str) -> str:
    """Returns the last line that isn't blank or dots; in a traceback, the exception."""
    lines = [line.strip() for line in io.StringIO(text) if line.strip(" .\r\n")]
    return lines[-1][:300] if lines else "no reason given"
