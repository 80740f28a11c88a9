"""The first hour of a new user, typed on a terminal of 100 columns; what is typed next is read from what is printed.

It fails on a line that is longer than the terminal, on a name that is not printed whole, and on silence after Enter.
"""

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyte
import pytest

from tests.support.colour_images import write_colour_folder
from tests.support.ray_head import RayHead
from tests.support.terminals import Terminal

pytestmark = [pytest.mark.slow, pytest.mark.ray]

COLUMNS = 100
# Of the processor, which others may use too: on a machine with nothing else to do, seconds.
_MAX_SILENT_CPU_S = 3.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_BIN = Path(sys.executable).parent


class Person:
    """Somebody who types commands in a folder and reads what they print.

    Attributes:
      variables: the environment.
      read: the last command's text.
    """

    def __init__(self, home: Path, variables: Mapping[str, str] = {}) -> None:
        keep = {name: os.environ[name] for name in ("LANG", "LC_ALL", "RAY_TMPDIR") if name in os.environ}
        path = f"{_BIN}{os.pathsep}{os.environ['PATH']}"
        own = {"HOME": str(home), "PATH": path, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
        self.variables = {**keep, **own, **variables}
        self.read = ""

    def types(self, line: str, *, code: int = 0, interrupt_at: str | None = None) -> str:
        """Types a command line, and Ctrl-C once a text is there; returns what stands on the terminal at the end."""
        with Terminal(*shlex.split(line), environment=self.variables, columns=COLUMNS) as terminal:
            wait_for_a_word(terminal, line)
            if interrupt_at:
                terminal.read_until(lambda text: interrupt_at in text)
                terminal.type("\x03")
            terminal.read_all()
            lines = shown(terminal.raw)
            self.read = "\n".join(lines)
            assert terminal.wait() == code, f"{line}\n{self.read}"
        if line.startswith("mnist-ray "):
            # A path alone on its line can't be broken.
            too_long = [each for each in lines if len(each) > COLUMNS and " " in each]
            assert too_long == [], f"{line}\n{self.read}"
        assert "Traceback" not in self.read, f"{line}\n{self.read}"
        return self.read

    def types_what_it_says(self) -> str:
        """Types the command of the last line that says what is next."""
        (*_, command) = re.findall("^next: (.*)$", self.read, re.MULTILINE)
        return self.types(command)

    def reads(self, pattern: str) -> str:
        """Returns what the last command printed in the place of a pattern's group."""
        found = re.search(pattern, self.read, re.MULTILINE)
        assert found, f"{pattern}\n{self.read}"
        return found[1]


def shown(raw: str) -> list[str]:
    """Returns the lines that stand on a terminal at the end, as long as they were written."""
    screen = pyte.Screen(10 * COLUMNS, raw.count("\n") + 1)
    pyte.Stream(screen).feed(raw)
    return "\n".join(line.rstrip() for line in screen.display).rstrip("\n").split("\n")


def wait_for_a_word(terminal: Terminal, line: str) -> None:
    """Waits until a command has printed something; fails if it computes for seconds before."""
    terminal.read_until(lambda text: text.strip() or cpu_seconds(terminal.process.pid) > _MAX_SILENT_CPU_S)
    assert terminal.text.strip(), f"silent for {_MAX_SILENT_CPU_S:g} s: {line}"


def cpu_seconds(pid: int) -> float:
    """Returns the processor time of a process and of its children that have ended; 0 after its end."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS_PER_S


def names_in(text: str, heading: str) -> list[str]:
    """Returns the first column of the table with a heading."""
    lines = [line.strip() for line in text.splitlines()]
    (first, *_) = [place for place, line in enumerate(lines) if line.split()[:1] == [heading]]
    rows = lines[first + 2 :]
    return [row.split()[0] for row in rows[: rows.index("")] if row] if "" in rows else [row.split()[0] for row in rows]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder of a short path, as people have: a path is never broken over lines; the working folder is in it."""
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp") as folder:
        (Path(folder) / "work").mkdir()
        monkeypatch.chdir(f"{folder}/work")
        yield Path(folder)


@pytest.fixture
def person(home: Path) -> Person:
    return Person(home)


def test_photos_of_ones_own_are_trained_on_evaluated_and_predicted(person: Person) -> None:
    write_colour_folder(Path("photos"), 40)
    person.types("mnist-ray train --dataset photos/ --epochs 2", code=2)
    dataset = person.reads(r"did you mean (\S+?)\?")
    said = person.types(f"mnist-ray train --dataset {dataset} --epochs 2 --dropout 0.1")
    assert "4 classes" in said
    run = person.reads(r"^(\S+) is finished")
    assert "photos" in run
    assert "dropout0.1" in run
    person.types_what_it_says()
    assert run in names_in(person.read, "run")
    person.types(f"mnist-ray predict --run {run} --images photos/")
    person.types(f"mnist-ray show {run}")


def test_a_grid_is_trained_evaluated_reported_and_asked_by_the_names_that_are_printed(person: Person) -> None:
    person.types("mnist-ray tune --dataset digits --dropout 0,0.3 --hidden-sizes 16 --epochs 2 --seeds 2")
    grid = person.reads(r"^grid (\S+):")
    person.types_what_it_says()
    person.types("mnist-ray evaluations")
    (evaluation,) = names_in(person.read, "evaluation")
    assert evaluation.startswith(f"{grid}-on-digits-test-")
    for which in (evaluation, evaluation[: len(grid) + 4], "latest"):
        assert grid in person.types(f"mnist-ray report {which}")
    assert "ropout" in person.types("mnist-ray compare latest")
    person.types("mnist-ray query 'SELECT setting, avg(accuracy) AS accuracy FROM metrics GROUP BY setting'")
    person.types("mnist-ray runs")
    runs = names_in(person.read, "run")
    assert len(runs) == 4
    assert all(run.startswith(f"{grid}-s") for run in runs)
    person.types("mnist-ray grids")
    assert grid in names_in(person.read, "grid")
    # The same command has nothing left to do; more seeds and epochs go on.
    person.types("mnist-ray tune --dataset digits --dropout 0,0.3 --hidden-sizes 16 --epochs 2 --seeds 2")
    assert "all were done already" in person.read
    person.types("mnist-ray tune --dataset digits --dropout 0,0.3 --hidden-sizes 16 --epochs 3 --seeds 2")
    assert "4 trained now" in person.read


def test_a_laptop_that_closes_and_a_run_that_goes_on(person: Person) -> None:
    train = "mnist-ray train --dataset digits --epochs 60 --name long"
    person.types(train, code=130, interrupt_at="epoch 2/60")
    assert person.read.splitlines()[-1] == "mnist-ray: stopped; the same command goes on"
    person.types("mnist-ray runs")
    assert names_in(person.read, "run") == ["long"]
    assert "long: goes on after epoch" in person.types(train)
    assert "was finished already" in person.types(train)
    person.types("mnist-ray train --dataset digits --epochs 61 --name long")
    assert "best of 61 epochs" in person.read


def test_a_cluster_job_by_both_ways(shared_head: RayHead, home: Path) -> None:
    storage = home / "results"
    person = Person(home, {**shared_head.environment, "RAY_API_SERVER_ADDRESS": shared_head.address})
    shared = f"--storage {storage} --shared-storage"
    person.types(f"mnist-ray train --dataset digits --epochs 1 --name launched {shared}")
    job = person.reads(r"^(train-launched-\S+)$")
    command = f"mnist-ray train --dataset digits --epochs 1 --name plain {shared}"
    person.types(f"ray job submit --address {shared_head.address} -- {command}")
    person.types("mnist-ray jobs list --status succeeded")
    assert job in names_in(person.read, "job")
    assert "plain" in person.read
    person.types(f"mnist-ray jobs logs {job} --tail 3")
    person.types(f"mnist-ray runs --storage {storage}")
    assert sorted(names_in(person.read, "run")) == ["launched", "plain"]
