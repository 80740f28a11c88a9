"""A job that is followed to its end."""

import asyncio
import io
import threading
import time

import pytest

from mnist_ray.errors import ClusterError
from mnist_ray.submission import follow as following
from mnist_ray.submission.follow import follow, how_to_stop
from mnist_ray.submission.job_api import JobClient
from tests.support.dashboard import (
    Dashboard,
)


def _job(status: str, exit_code: str = "null") -> str:
    return (
        f'{{"submission_id": "a", "status": "{status}", "entrypoint": "e", "message": "one\\ntwo", "error_type": "T",'
        f' "driver_exit_code": {exit_code}, "start_time": 1500, "end_time": 2500, "metadata": {{}}}}'
    )


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [
        ("SUCCEEDED", "0", 0),
        ("FAILED", "3", 3),
        ("FAILED", "137", 137),
        ("FAILED", "-9", 137),
        ("STOPPED", "null", 143),
    ],
)
def test_the_exit_code_is_the_jobs_own(status: str, exit_code: str, expected: int) -> None:
    answers = {"/api/jobs/a": (200, _job(status, exit_code)), "/api/jobs/a/logs": (200, '{"logs": "text"}')}
    output = io.StringIO()
    with Dashboard(answers) as server:
        assert follow(JobClient(server.address), "a", output=output) == expected
    assert output.getvalue() == "text"


def test_a_log_that_ray_cannot_read_is_said_and_the_exit_code_kept(capsys: pytest.CaptureFixture[str]) -> None:
    answers = {
        "/api/jobs/a": (200, _job("FAILED", "7")),
        "/api/jobs/a/logs": (500, "Traceback\nUnicodeDecodeError: x\n"),
    }
    with Dashboard(answers) as server:
        assert follow(JobClient(server.address), "a", output=io.StringIO()) == 7
    assert capsys.readouterr().err == (
        f"warning: the log above may lack its end: {server.address}/api/jobs/a/logs: HTTP 500: UnicodeDecodeError: x\n"
    )


def test_a_cluster_that_is_gone_while_its_job_is_followed_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "RECONNECT_S", 0.0)
    server = Dashboard({"/api/jobs/a": (200, _job("RUNNING"))})

    def stop_after_two_requests() -> None:
        while len(server.requests) < 2:
            time.sleep(0.01)
        server.__exit__()

    server.__enter__()
    stopper = threading.Thread(target=stop_after_two_requests)
    stopper.start()
    with pytest.raises(ClusterError) as caught:
        follow(JobClient(server.address), "a", output=io.StringIO())
    stopper.join()
    assert "the job may go on: see its log with 'mnist-ray jobs logs a" in str(caught.value)


def test_a_log_sent_again_from_its_beginning_is_written_once() -> None:
    output = io.StringIO()
    writer = following._LogWriter(output)
    for parts in (["one\n", "tw"], ["one\ntwo\n", "three\n"], ["o", "ne\ntwo\nthree\nfour\n"]):
        writer.restart()
        for part in parts:
            writer.write(part)
    assert output.getvalue() == "one\ntwo\nthree\nfour\n"


def test_an_output_that_cannot_be_written_is_not_taken_for_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def one_part(client: JobClient, job_id: str):
        yield "text"

    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(following, "_log_parts", one_part)
    with pytest.raises(BrokenPipeError):
        asyncio.run(following._tail_log(JobClient("http://unused"), "a", following._LogWriter(Broken())))


def test_the_ways_out_of_a_job_left_behind_can_be_pasted_into_a_shell() -> None:
    assert how_to_stop("a b", "http://h:1") == (
        "see its log with 'mnist-ray jobs logs 'a b' --address http://h:1', "
        "stop it with 'mnist-ray jobs stop 'a b' --address http://h:1'"
    )
