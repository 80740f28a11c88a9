"""The commands for a cluster's jobs, on a dashboard that answers as Ray's does."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cli.main import run_command
from tests.support.dashboard import VERSION, Dashboard
from tests.support.doing_lines import without_doing

# 2026-11-01 12:00 UTC.
NOON_MS = 1793534400000
LOG = "one\ntwo\nthree\n"


def entry(job_id: str, status: str, *, minutes: int, run: str | None, seconds: int | None) -> dict[str, Any]:
    start = NOON_MS + 60_000 * minutes
    return {
        "type": "SUBMISSION",
        "submission_id": job_id,
        "status": status,
        "entrypoint": "python jobs/train.py --name x " + "y" * 200,
        "message": None,
        "error_type": None,
        "driver_exit_code": {"SUCCEEDED": 0, "FAILED": 6}.get(status),
        "start_time": start,
        "end_time": None if seconds is None else start + 1000 * seconds,
        "metadata": {} if run is None else {"run": run},
    }


JOBS = [
    entry("raysubmit_RmnaAwQTVAFk7e3S", "SUCCEEDED", minutes=0, run="baseline-digits-s0", seconds=44),
    entry(
        "train-dropout-mnist-wd1e-4-s0-1a2b3c4d", "FAILED", minutes=1500, run="dropout-mnist-wd1e-4-s0", seconds=3909
    ),
    entry("raysubmit_4BWbRC8kdDBkawux", "RUNNING", minutes=3000, run=None, seconds=None),
]
ANSWERS = {
    **VERSION,
    "/api/jobs/": (200, json.dumps(JOBS)),
    **{f"/api/jobs/{job['submission_id']}": (200, json.dumps(job)) for job in JOBS},
    f"/api/jobs/{JOBS[0]['submission_id']}/logs": (200, json.dumps({"logs": LOG})),
}


@pytest.fixture
def dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setenv("HOME", str(tmp_path))
    # A local Ray turns its token on for the rest of a process.
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with Dashboard(ANSWERS) as server:
        monkeypatch.setenv("RAY_ADDRESS", server.address)
        yield server


def test_jobs_are_listed_with_their_dates_and_durations_in_100_columns(
    dashboard: Dashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["jobs", "list"]) == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert max(map(len, lines)) <= 100
    said = [" ".join(line.split()) for line in lines if "2026" in line]
    assert said[0] == f"{JOBS[0]['submission_id']} SUCCEEDED 0 2026-11-01 0:44 baseline-digits-s0"
    # The id of a job that the launcher has submitted says what it makes.
    assert said[1] == f"{JOBS[1]['submission_id']} FAILED 6 2026-11-02 1:05:09 -"
    assert said[2].startswith(f"{JOBS[2]['submission_id']} RUNNING - 2026-11-03 ")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--status", "running"], [2]),
        (["--status", "Failed"], [1]),
        (["--since", "2026-11-02"], [1, 2]),
        (["--last", "1", "--reverse"], [0]),
        (["--where", "run=baseline-digits-s0"], [0]),
    ],
)
def test_jobs_are_selected_as_other_lists_are(
    dashboard: Dashboard, capsys: pytest.CaptureFixture[str], options: list[str], expected: list[int]
) -> None:
    assert run_command(["jobs", "list", "--json", *options]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["job"] for row in listed] == [JOBS[number]["submission_id"] for number in expected]


def test_json_has_everything_that_is_known_of_a_job(dashboard: Dashboard, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["jobs", "status", JOBS[1]["submission_id"], "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "job": JOBS[1]["submission_id"],
        "status": "FAILED",
        "exit_code": 6,
        "date": "2026-11-02T13:00:00+00:00",
        "ended": "2026-11-02T14:05:09+00:00",
        "duration_s": 3909.0,
        "run": "dropout-mnist-wd1e-4-s0",
        "entrypoint": JOBS[1]["entrypoint"],
        "error_type": None,
        "message": "",
        "metadata": {"run": "dropout-mnist-wd1e-4-s0"},
    }


def test_the_entry_point_is_told_of_a_single_job_only(dashboard: Dashboard, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["jobs", "list"]) == 0
    assert "python jobs/train.py" not in capsys.readouterr().out
    assert run_command(["jobs", "status", JOBS[0]["submission_id"]]) == 0
    printed = capsys.readouterr().out
    assert "python jobs/train.py --name x" in printed
    assert "duration    0:44\n" in printed


@pytest.mark.parametrize(("count", "expected"), [("2", "two\nthree\n"), ("0", ""), ("9", LOG)])
def test_the_last_lines_of_a_log_are_printed(
    dashboard: Dashboard, capsys: pytest.CaptureFixture[str], count: str, expected: str
) -> None:
    assert run_command(["jobs", "logs", JOBS[0]["submission_id"], "--tail", count]) == 0
    assert capsys.readouterr().out == expected
    # The dashboard has no such websocket: the rest comes from the log at the job's end.
    assert run_command(["jobs", "logs", JOBS[0]["submission_id"], "--tail", count, "--follow"]) == 0
    assert without_doing(capsys.readouterr().err) == expected


def test_ctrl_c_leaves_a_followed_job_alone_and_says_so(
    dashboard: Dashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        while not any(path.endswith("/logs/tail") for path, _ in dashboard.requests):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    job_id = JOBS[2]["submission_id"]
    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    assert run_command(["jobs", "logs", job_id, "--follow"]) == 130
    interrupting.join()
    assert without_doing(capsys.readouterr().err) == (
        f"mnist-ray: job {job_id} goes on: see its log with 'mnist-ray jobs logs {job_id} --address "
        f"{dashboard.address}', stop it with 'mnist-ray jobs stop {job_id} --address {dashboard.address}'\n"
    )


def test_a_job_that_has_ended_is_deleted_and_a_running_one_is_not(
    dashboard: Dashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, running = JOBS[0]["submission_id"], JOBS[2]["submission_id"]
    assert run_command(["jobs", "delete", ended, running]) == 6
    printed = capsys.readouterr()
    assert printed.out == f"{ended}: deleted\n"
    assert without_doing(printed.err) == (
        f"mnist-ray: error: job '{running}': is RUNNING, and only a job that has ended can be deleted; stop it with "
        f"'mnist-ray jobs stop {running} --address {dashboard.address}'\n"
    )
    assert dashboard.deleted == [f"/api/jobs/{ended}"]
