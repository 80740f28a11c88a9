"""Follows a cluster job: its log as it grows, then its exit code."""

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
from mnist_ray.text.escape import fitting, printable_log, say_line

# How long a cluster may be unreachable before following its job is abandoned.
RECONNECT_S = 60.0
# Ray's dashboard answers no websocket pings, so silence is the only sign of a dead connection.
SILENCE_S = 60.0
# 128 + SIGTERM, the signal that stops a job.
EXIT_STOPPED = 143


def follow(client: JobClient, job_id: str, *, output: TextIO, tail: int | None = None) -> int:
    """Writes a job's log as it grows, until the job ends, and returns the job's exit code.

    Resumes the log after a lost connection; the job is not affected. Ctrl-C stops the following, not the job.

    Args:
      client: of the job's cluster.
      job_id: the job.
      output: where the log goes.
      tail: number of lines of the log so far to write; None for all of them.

    Returns:
      The exit code of the job's process, 128 + n if signal n ended it; 143 if the job was stopped.

    Raises:
      ClusterError: the cluster was unreachable for a minute, or the job failed before its process started.
      ConfigError: the cluster doesn't know the job.
    """
    job = job_status(client, job_id)
    log = "" if tail is None else job_logs(client, job_id)
    writer = _LogWriter(output, num_to_leave_out=len(log) - len(last_lines(log, tail)))
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


def last_lines(log: str, count: int | None) -> str:
    """Returns the last lines of a log; all of them if count is None."""
    lines = log.splitlines(keepends=True)
    return "".join(lines if count is None else lines[max(len(lines) - count, 0) :])


class _LogWriter:
    """Writes each character of a log once, although every reconnection sends the log from its beginning."""

    def __init__(self, output: TextIO, *, num_to_leave_out: int = 0) -> None:
        self._output = output
        self._num_written = num_to_leave_out
        self._num_to_skip = 0

    def restart(self) -> None:
        self._num_to_skip = self._num_written

    def write(self, text: str) -> None:
        new = text[self._num_to_skip :]
        self._num_to_skip -= len(text) - len(new)
        self._num_written += len(new)
        self._output.write(fitting(printable_log(new), self._output) if self._output.isatty() else new)
        self._output.flush()


async def _tail_log(client: JobClient, job_id: str, writer: _LogWriter) -> None:
    writer.restart()
    async with contextlib.aclosing(_log_parts(client, job_id)) as parts:
        async for text in parts:
            writer.write(text)


async def _log_parts(client: JobClient, job_id: str) -> AsyncGenerator[str, None]:
    url = f"{client.address}{job_path(job_id)}/logs/tail"
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_S)
    # Any failure just ends the log: the caller asks for the job's state next and sees what is wrong.
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
    """Returns the commands to view and stop a job that continues without its launcher."""
    job = shlex.quote(job_id)
    return (
        f"see its log with 'mnist-ray jobs logs {job} --address {address}', "
        f"stop it with 'mnist-ray jobs stop {job} --address {address}'"
    )
