import contextlib
import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable

import pytest

from mnist_ray.cli import query as cli_query
from mnist_ray.cli.options import say
from mnist_ray.submission.follow import _LogWriter
from mnist_ray.text.escape import printable, printable_log
from mnist_ray.text.tables import print_rows, print_table

HOSTILE = "\x1b]0;owned\x07\x1b[2J[/bold] :smile: <b>\r\n\u202egnp.\x9b31m\udcff"
SHOWN = r"\x1b]0;owned\x07\x1b[2J[/bold] :smile: <b>\r\n\u202egnp.\x9b31m\udcff"


def test_what_a_terminal_would_obey_is_written_as_in_a_python_string() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("Grüße, 日本語 🙂 $(rm) ;'\"`") == "Grüße, 日本語 🙂 $(rm) ;'\"`"
    assert printable("a\tb\n", keep="\n\t") == "a\tb\n"


def test_lines_of_several_threads_stay_whole() -> None:
    code = (
        "import sys, threading\n"
        "from mnist_ray.text.escape import say_line\n"
        "sys.setswitchinterval(1e-6)\n"
        "def say(name):\n"
        "    for number in range(1000): say_line(f'{name} says {number}')\n"
        "threads = [threading.Thread(target=say, args=(name,)) for name in 'abcd']\n"
        "for thread in threads: thread.start()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(done.stderr.splitlines()) == sorted(
        f"{name} says {number}" for name in "abcd" for number in range(1000)
    )


def test_of_a_log_lines_progress_and_colours_stay() -> None:
    assert printable_log("a\n\t\x1b[1;31mb\x1b[0m\r\x1b[2Jc\x1b]52;c;eA==\x07") == (
        "a\n\t\x1b[1;31mb\x1b[0m\r\\x1b[2Jc\\x1b]52;c;eA==\\x07"
    )


@pytest.mark.parametrize("num_columns", [1, 60], ids=["as a table", "as a list"])
def test_a_table_shows_cells_and_names_as_they_are(capsys: pytest.CaptureFixture[str], num_columns: int) -> None:
    print_table([HOSTILE, *"a" * num_columns], [[HOSTILE, *["[red]x[/red]"] * num_columns]])
    printed = capsys.readouterr().out
    assert printed.count(SHOWN) == 2
    assert printed.count("[red]x[/red]") == num_columns
    assert "\x1b" not in printed


def test_the_jobs_of_others_are_listed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([{"job": "a", "entrypoint": HOSTILE}], as_json=False, empty="")
    assert SHOWN in capsys.readouterr().out


def test_an_error_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    assert say(f"error: {HOSTILE}", 3) == 3
    assert capsys.readouterr().err == f"mnist-ray: error: {SHOWN}\n"


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], str]:
    """Returns what a call writes to a terminal that is its stdout."""

    def run(call: Callable[[], None]) -> str:
        near, far = pty.openpty()
        with open(far, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            call()
        written = b""
        # What was written stays to be read after the end of the other side, which then is an error.
        with contextlib.suppress(OSError):
            while some := os.read(near, 65536):
                written += some
        os.close(near)
        return written.decode()

    return run


def test_csv_on_a_terminal_and_in_a_file(
    on_terminal: Callable[[Callable[[], None]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        cli_query._print_csv(["name"], iter([("\x1b[2Ja",), (b"\x00",), (1.5,), (["\x1b"],)]))

    assert on_terminal(write) == 'name\r\n\\x1b[2Ja\r\nAA==\r\n1.5\r\n"[""\\u001b""]"\r\n'
    write()
    assert capsys.readouterr().out == 'name\n\x1b[2Ja\nAA==\n1.5\n"[""\\u001b""]"\n'


def test_a_followed_log_on_a_terminal_and_in_a_file(on_terminal: Callable[[Callable[[], None]], str]) -> None:
    assert on_terminal(lambda: _LogWriter(sys.stdout).write("a\x1b[2J\n")) == "a\\x1b[2J\r\n"
    file = io.StringIO()
    _LogWriter(file).write("a\x1b[2J\n")
    assert file.getvalue() == "a\x1b[2J\n"
