"""Lines in a log, and rows on a terminal; tests/cli/test_silence.py sees those of real commands."""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr

import pytest

from mnist_ray.text import doing
from mnist_ray.text.doing import Count, Row, at_work, count_on, counted
from mnist_ray.text.escape import say_line
from tests.text.test_escape import HOSTILE, SHOWN


class TerminalOutput(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> TerminalOutput:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    return TerminalOutput()


def test_a_log_has_the_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with at_work("loading digits"):
        assert list(counted([1, 2], "files read", total=2)) == [1, 2]
    assert capsys.readouterr().err == "loading digits\n"


def test_a_log_has_a_line_at_intervals_about_what_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doing, "LINE_INTERVAL_S", 0.0)
    for _ in counted(["ab", "c"], "letters read", total=3, size=len):
        pass
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("2 of 3 letters read, 0:0")
    assert second == "3 of 3 letters read, 0:00 left"


def test_a_terminal_has_rows_below_the_lines_and_none_at_the_end(terminal: TerminalOutput) -> None:
    with redirect_stderr(terminal), at_work("loading digits"):
        for _ in counted(range(4), "files read", total=4):
            say_line("a line")
        say_line("another")
    text = terminal.getvalue()
    assert text.startswith("loading digits\n")
    assert " of 4 files read" in text
    assert "a line\n" in text
    # The last thing is the removal of the row, and the cursor is there.
    assert text.rindex("\x1b[2K") > text.rindex("another\n")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_part_of_an_item_counts_until_the_item_does() -> None:
    def work() -> Iterator[int]:
        count_on("images", 3)
        yield 10
        count_on("images", 4)
        count_on("others", 100)
        yield 10

    (row,) = doing._DISPLAY.rows or (None,)
    assert row is None
    counts = []
    for _ in counted(work(), "images", total=20, size=lambda item: item):
        (row,) = doing._DISPLAY.rows
        counts.append(row.done)
    assert counts == [10, 20]


def test_an_error_ends_the_rows(terminal: TerminalOutput) -> None:
    with redirect_stderr(terminal):
        with pytest.raises(ValueError, match="the error"), at_work("loading digits"), Count("files read", 3):
            raise ValueError("the error")
        assert doing._DISPLAY.rows == ()
        assert sys.stderr is terminal
        say_line("the end")
    assert terminal.getvalue().endswith("the end\n")


def test_what_a_row_quotes_is_shown_and_not_obeyed(terminal: TerminalOutput) -> None:
    class Quoting(Row):
        def words(self) -> str:
            return HOSTILE

    with redirect_stderr(terminal), Quoting(None):
        while SHOWN not in terminal.getvalue():
            time.sleep(0.01)
    assert "owned\x07" not in terminal.getvalue()
