"""Follow a job of a cluster: its log as it grows, then its exit code."""

import asyncio
import contextlib
import shlex
import time
from collections.abc import AsyncGenerator
from typing import TextIO

import aiohttp

from mnist_ray.errors import ClusterError
from mnist_ray.submission.job_api import (
    CONNECT_TIMEOUT_S,
    Job,
    JobClient,
    Unreachable,
    job_logs,
    job_path,
    job_status,
    last_line,
)
from mnist_ray.text.escape import printable_log, say_line

# How long a cluster may stay out of reach before following its job is given up.
RECONNECT_S = 60.0
# Ray's dashboard answers no websocket pings, so a connection that died silently shows by nothing but its silence.
SILENCE_S = 60.0
# As of a process that SIGTERM ended, which is what stopping a job sends.
EXIT_STOPPED = 143


def follow(client: JobClient, job_id: str, *, output: TextIO) -> int:
    """Writes a job's log as it grows, until the job has ended, and returns the job's own exit code.

    A lost connection is taken up again where it broke off; the job never notices. Ctrl-C ends the following alone.

    Returns:
      The exit code of the job's process, 128 + n when signal n ended it; 143 when somebody stopped the job.

    Raises:
      ClusterError: the cluster was out of reach for a minute, or the job failed before its process started.
      ConfigError: the cluster knows no such job.
    """
    job = job_status(client, job_id)
    writer = _LogWriter(output)
    lost_since: float | None = None
    while not job.has_ended:
        asyncio.run(_tail_log(client, job_id, writer))
        try:
            job = job_status(client, job_id)
            lost_since = None
        except Unreachable as error:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > RECONNECT_S:
                raise ClusterError(f"{error}; the job may go on: {how_to_stop(job_id, client.address)}") from None
        if not job.has_ended:
            time.sleep(1)
    _write_rest(client, job_id, writer)
    return _exit_code(job)


class _LogWriter:
    """Writes a log that is sent from its beginning again after each loss, each character once."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._num_written = 0
        self._num_to_skip = 0

    def restart(self) -> None:
        self._num_to_skip = self._num_written

    def write(self, text: str) -> None:
        new = text[self._num_to_skip :]
        self._num_to_skip -= len(text) - len(new)
        self._num_written += len(new)
        self._output.write(printable_log(new) if self._output.isatty() else new)
        self._output.flush()


async def _tail_log(client: JobClient, job_id: str, writer: _LogWriter) -> None:
    writer.restart()
    async with contextlib.aclosing(_log_parts(client, job_id)) as parts:
        async for text in parts:
            writer.write(text)


async def _log_parts(client: JobClient, job_id: str) -> AsyncGenerator[str, None]:
    url = f"{client.address}{job_path(job_id)}/logs/tail"
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_S)
    # What breaks the connection is not told apart here: the caller asks for the job's state next, and that says.
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with (
            aiohttp.ClientSession(headers=client.headers, timeout=timeout) as session,
            session.ws_connect(url, timeout=aiohttp.ClientWSTimeout(ws_close=1), proxy=client.proxy()) as socket,
        ):
            while (message := await socket.receive(SILENCE_S)).type is aiohttp.WSMsgType.TEXT:
                yield message.data


def _write_rest(client: JobClient, job_id: str, writer: _LogWriter) -> None:
    try:
        log = job_logs(client, job_id)
    except ClusterError as error:
        say_line(f"warning: the log above may lack its end: {error}")
        return
    writer.restart()
    writer.write(log)


def _exit_code(job: Job) -> int:
    if job.status == "STOPPED":
        return EXIT_STOPPED
    if job.exit_code is None:
        raise ClusterError(f"job {job.job_id!r}: failed before it started: {job.error_type}: {last_line(job.message)}")
    return job.exit_code if job.exit_code >= 0 else 128 - job.exit_code


def how_to_stop(job_id: str, address: str) -> str:
    """Returns the two commands for a job that goes on without its launcher."""
    job = shlex.quote(job_id)
    return (
        f"see its log with 'mnist-ray jobs logs {job} --address {address}', "
        f"stop it with 'mnist-ray jobs stop {job} --address {address}'"
    )
