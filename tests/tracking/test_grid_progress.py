import io
import sys
import time

import pytest

from mnist_ray.grids.grid import GridRun, expand, read_grid
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.text.durations import duration
from mnist_ray.text.escape import say_line
from mnist_ray.tracking.grid_progress import GridProgress


def progress(run: str, epochs: int, status: str = "unfinished", accuracy: float = 0.9) -> RunProgress:
    return RunProgress(run, status, None, epochs, 1, 0.5, accuracy, 1.0)


class TerminalOutput(io.StringIO):
    def isatty(self) -> bool:
        return True


def view_of(seconds: list[float]) -> tuple[GridProgress, list[str]]:
    grid = read_grid({"dropout": [0.1, 0.2, 0.3, 0.4], "epochs": 4}, seeds=None, overrides={}, source="test")
    runs = expand(grid, name="g", max_runs=10)
    names = [run.run for run in runs]
    before = {name: RunProgress(name, "unfinished", None, 0, None, None, None, 0.0) for name in names}
    before[names[0]] = progress(names[0], 4, "finished", 0.8)
    return GridProgress(runs, before, now=lambda: seconds[0]), names


def test_pace_and_time_left_count_only_what_this_command_did() -> None:
    clock = [0.0]
    view, names = view_of(clock)
    assert view.counts() == {"finished": 1, "stopped": 0, "diverged": 0, "running": 0, "waiting": 3}
    assert view.seconds_left() is None
    clock[0] = 30.0
    view.update([progress(names[1], 4, "finished", 0.95), progress(names[2], 2)])
    # 6 epochs in 30 s; 2 + 4 epochs are left.
    assert view.seconds_left() == 30.0
    assert view.runs_per_minute() == 2.0
    assert view.words() == "2/4 runs done, 1 running, best 0.9500 (dropout 0.2), 2.0 runs/min, 0:30 left"


def test_stopped_and_diverged_runs_are_done_and_their_epochs_are_not_left() -> None:
    clock = [0.0]
    view, names = view_of(clock)
    clock[0] = 10.0
    view.update([progress(names[1], 1, "stopped"), progress(names[2], 1, "diverged"), progress(names[3], 3)])
    assert view.counts() == {"finished": 1, "stopped": 1, "diverged": 1, "running": 1, "waiting": 0}
    assert view.seconds_left() == 2.0
    assert "1 running, 1 stopped, 1 diverged" in view.words()


def test_runs_that_differ_in_the_seed_alone_have_no_setting_to_name() -> None:
    grid = read_grid({"dropout": 0.1, "epochs": 4}, seeds="3", overrides={}, source="test")
    runs = expand(grid, name="g", max_runs=10)
    view = GridProgress(runs, {})
    view.update([progress(runs[1].run, 4, "finished", 0.95)])
    assert "best 0.9500, " in view.words()


def test_the_best_setting_has_the_name_that_reports_give_it() -> None:
    grid = read_grid({"batch_norm": [False, True], "dropout": [0.0, 0.3]}, seeds=None, overrides={}, source="test")
    runs = expand(grid, name="g", max_runs=10)
    said = []
    for run in runs:
        view = GridProgress(runs, {})
        view.update([progress(run.run, 5, "finished", 0.95)])
        said.append(view.words().partition("best ")[2].partition(")")[0])
    assert said == ["0.9500 (dropout 0, no bn", "0.9500 (dropout 0.3", "0.9500 (bn", "0.9500 (bn, dropout 0.3"]


def test_runs_that_come_later_are_named_by_what_varies_then() -> None:
    def runs_with(**settings: object) -> tuple[GridRun, ...]:
        return expand(read_grid(settings, seeds=None, overrides={}, source="test"), name="g", max_runs=10)

    first, later = runs_with(dropout=0.1), runs_with(dropout=0.2)
    view = GridProgress(first, {})
    view.update([progress(first[0].run, 1)])
    assert "best 0.9000, " in view.words()
    view.add(later)
    assert "best 0.9000 (dropout 0.1), " in view.words()


def test_a_pipe_gets_a_line_now_and_then_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    view, names = view_of(clock)
    with view:
        for epoch in range(1, 5):
            clock[0] += 4.0
            view.update([progress(names[1], epoch)])
    assert capsys.readouterr().err.count("\n") == 2


def test_a_terminal_gets_a_row_that_moves_and_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    output = TerminalOutput()
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setenv("TERM", "xterm")
    view, names = view_of([0.0])
    with view:
        view.update([progress(names[1], 1)])
        say_line("a worker was lost")
        # 4 epochs of the first run and 1 of the second, of 16.
        while " 31% 1/4 runs done, 1 running, best 0.9000 (dropout 0.2)" not in output.getvalue():
            time.sleep(0.01)
    assert "a worker was lost\n" in output.getvalue()


def test_durations_are_written_as_on_a_clock() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 61, 3909)] == ["0:00", "1:00", "1:01", "1:05:09"]


def test_a_grid_that_fails_before_any_run_tells_of_the_error_alone(capsys: pytest.CaptureFixture[str]) -> None:
    view, names = view_of([0.0])
    with pytest.raises(ValueError, match="the error"), view:
        raise ValueError("the error")
    assert capsys.readouterr().err == ""
    # Of runs that were trained it tells how far they are.
    # PT012 asks for one statement in the block: what is shown before the error is what this is about.
    with pytest.raises(ValueError, match="the error"), view:  # noqa: PT012
        view.update([progress(names[1], 2)])
        raise ValueError("the error")
    assert capsys.readouterr().err.startswith("1/4 runs done, 1 running")
