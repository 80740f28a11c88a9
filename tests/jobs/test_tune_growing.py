"""Growing grids of real runs, trained in this process."""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.analysis.blocks import Scores
from mnist_ray.analysis.looks import before_looks, look_at
from mnist_ray.cluster.tune_job import TuneJob
from mnist_ray.errors import CheckpointError, ConflictError, RunFailedError
from mnist_ray.grids.grid import GridRun, grid_settings, read_grid
from mnist_ray.grids.growth import Growth
from mnist_ray.jobs.growing_runs import Session
from mnist_ray.jobs.tune_growing import GrowingGrid, setting_names
from mnist_ray.report.growth_text import Grown, answer, growth_line
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.run_documents import with_checksum
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.tracking.grid_progress import GridProgress
from mnist_ray.tracking.trackers import Tracking, track
from mnist_ray.training.data import load_data
from mnist_ray.training.train_stack import train_stack
from tests.support.grid_runs import CPU

MARGIN = 0.005


class InProcess:
    """A session that trains one stack after the other in this process, until it is late; an epoch takes a second."""

    at_once = 1

    def __init__(self, job: TuneJob, storage: Storage, is_late: Callable[[], bool]) -> None:
        self.job, self.storage, self.is_late = job, storage, is_late
        self.clock = 0.0

    def divide(self, runs: Sequence[GridRun]) -> list[tuple[GridRun, ...]]:
        return self.job.trials(runs, self.at_once)

    def train(self, runs: Sequence[GridRun]) -> None:
        for stack in self.divide(runs):
            data = load_data(stack[0].config, self.job.data_dir, CPU)
            for _ in train_stack(stack, data, storage=self.storage, device=CPU):
                self.clock += 1
                if self.is_late():
                    return


class GridAt:
    """A grid of the digits in a storage, and what the commands on it say."""

    def __init__(self, storage: Path, *, seeds: str = "4", **settings: Any) -> None:
        grid = read_grid(grid_settings("smoke"), seeds=seeds, overrides=settings, source="test")
        self.path, self.storage = storage, open_storage(str(storage))
        self.job = TuneJob(grid, "g", self.storage.uri, storage)
        self.runs = self.job.runs(self.job.samples())
        self.said = io.StringIO()
        self.has_session = False

    def grow(
        self,
        *looks: int,
        settles: bool = True,
        margin: float = MARGIN,
        kill: Callable[[], bool] | None = None,
        num_epochs: float = float("inf"),
    ) -> tuple[Grown, int]:
        """Grows the grid; kill is called after each epoch of a stack, and num_epochs of stacks are the budget."""
        session = InProcess(self.job, self.storage, lambda: False)

        @contextmanager
        def open_session(is_late: Callable[[], bool]) -> Iterator[Session]:
            session.is_late, self.has_session = kill or is_late, True
            yield session

        grid = GrowingGrid(self.job, Growth(looks, margin, settles, num_epochs), self.storage, self.runs)
        view = GridProgress(grid.listed, {})
        with redirect_stderr(self.said), no_tracking(self.storage) as tracking:
            return grid.grow(view, tracking, open_session, now=lambda: session.clock)

    def looks(self) -> list[dict[str, Any]]:
        document = GridFolder(self.storage, "g").looks()
        assert document is not None
        return list(document["looks"])

    def seeds_of_settings(self) -> dict[str, int]:
        """Returns the number of seeds in grid.json of each setting, after checking that all of them are done."""
        folder = GridFolder(self.storage, "g")
        assert [row["run"] for row in folder.read_runs()] == folder.run_names()
        assert {row["status"] for row in folder.read_runs()} <= {"finished", "diverged"}
        names = setting_names(self.runs, len(self.job.grid.seeds))
        name_of = {run.run: names[place // len(self.job.grid.seeds)] for place, run in enumerate(self.runs)}
        counts = Counter(name_of[run] for run in folder.run_names())
        return dict(counts)


def no_tracking(storage: Storage) -> AbstractContextManager[Tracking]:
    return track((), storage, grid="g")


def test_a_grid_grows_look_by_look_and_its_folder_lists_what_counts(tmp_path: Path) -> None:
    grid = GridAt(tmp_path)
    grown, num_trained = grid.grow(2, 4)
    looks = grid.looks()
    assert looks[0]["num_seeds"] == 2
    assert grown.look is not None
    last = {name: look["num_seeds"] for look in looks for name in look["compared"]}
    assert grid.seeds_of_settings() == last
    assert num_trained == sum(last.values())
    lines = [line for line in grid.said.getvalue().splitlines() if line.startswith("look at")]
    assert len(lines) == len(looks)
    assert "look at 2 seeds:" in lines[0]
    assert "8 of at most" in lines[0]


def test_the_same_command_finds_everything_done_and_says_the_same(tmp_path: Path) -> None:
    grid = GridAt(tmp_path)
    first, _ = grid.grow(2, 3)
    before = (tmp_path / "grids/g/looks.json").read_bytes()
    again = GridAt(tmp_path)
    second, num_trained = again.grow(2, 3)
    growth = Growth((2, 3), MARGIN, settles=True)
    assert (num_trained, answer(second, growth)) == (0, answer(first, growth))
    assert (tmp_path / "grids/g/looks.json").read_bytes() == before
    # The stored bits alone give the same decisions.
    (tmp_path / "grids/g/looks.json").unlink()
    GridAt(tmp_path).grow(2, 3)
    assert (tmp_path / "grids/g/looks.json").read_bytes() == before


def test_a_kill_at_any_time_leaves_a_grid_that_goes_on_to_the_same_looks(tmp_path: Path) -> None:
    whole = GridAt(tmp_path / "whole")
    whole.grow(2, 4)
    for epochs_before_the_kill in (1, 3, 5):
        killed = GridAt(tmp_path / str(epochs_before_the_kill))
        epochs = iter(range(epochs_before_the_kill))

        def kill(epochs: Iterator[int] = epochs) -> bool:
            if next(epochs, None) is None:
                raise KeyboardInterrupt
            return False

        with pytest.raises(KeyboardInterrupt):
            killed.grow(2, 4, kill=kill)
        GridAt(killed.path).grow(2, 4)
        assert killed.looks() == whole.looks()
        assert killed.seeds_of_settings() == whole.seeds_of_settings()


def test_another_margin_looks_again_at_the_same_runs(tmp_path: Path) -> None:
    GridAt(tmp_path).grow(2)
    grid = GridAt(tmp_path)
    _, num_trained = grid.grow(2, margin=0.3)
    document = GridFolder(grid.storage, "g").looks()
    assert document is not None
    assert (num_trained, document["margin"], len(document["looks"])) == (0, 0.3, 1)


def test_a_grid_that_was_trained_as_a_whole_keeps_its_runs(tmp_path: Path) -> None:
    grid = GridAt(tmp_path, seeds="3")
    folder = GridFolder(grid.storage, "g")
    folder.claim(grid.job.grid, grid.runs)
    InProcess(grid.job, grid.storage, lambda: False).train(grid.runs)
    assert grid.grow(2, 3)[1] == 0
    assert sum(grid.seeds_of_settings().values()) == 12


def test_other_seeds_are_another_grid(tmp_path: Path) -> None:
    GridAt(tmp_path).grow(2)
    with pytest.raises(ConflictError, match="seeds=0,1,2,3 there, 7,8,9 here"):
        GridAt(tmp_path, seeds="7,8,9").grow(2, 3)


def test_runs_that_asha_has_stopped_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    before = GridAt(tmp_path, seeds="1")
    data = load_data(before.runs[0].config, tmp_path, CPU)
    list(train_stack(before.runs[:1], data, storage=before.storage, device=CPU, goes_on=lambda _: False))
    with pytest.raises(ConflictError, match="was stopped early by --scheduler asha; choose another --name"):
        GridAt(tmp_path).grow(2)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [before.runs[0].run]
    assert not (tmp_path / "grids").exists()


def test_when_the_time_is_up_the_complete_seeds_count(tmp_path: Path) -> None:
    grid = GridAt(tmp_path)
    with pytest.raises(RunFailedError, match="not enough for a single run"):
        grid.grow(4, settles=False, num_epochs=1)
    # One seed of all settings are two stacks of two epochs.
    growth = Growth((4,), MARGIN, settles=False, deadline=3)
    grown, num_trained = grid.grow(4, settles=False, num_epochs=3)
    assert set(grid.seeds_of_settings().values()) == {1}
    assert num_trained == 4
    assert grown.look is None
    assert answer(grown, growth)[0] == "All 4 settings have 1 seed."
    # One more seed of some settings would fit, too.
    grid = GridAt(tmp_path / "longer")
    grown, num_trained = grid.grow(4, settles=False, num_epochs=9.5)
    assert set(grid.seeds_of_settings().values()) == {2}
    assert num_trained == 8
    sentences = answer(grown, growth)
    assert sentences[0] == "All 4 settings have 2 seeds."
    assert sentences[1].startswith("By validation, these may be the best: ")
    assert "; 143 validation examples are too few to resolve 0.5 points." in sentences[1]
    assert re.fullmatch(
        r"The next 10 minutes would buy 2 more seeds of all 4 settings, and settle (\d|none) of the \d open "
        "pairs if the differences stay as they are.",
        sentences[2],
    )


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_without_time_what_is_done_counts_and_no_session_starts(num_seeds: int, tmp_path: Path) -> None:
    before = GridAt(tmp_path, seeds=str(num_seeds))
    GridFolder(before.storage, "g").claim(before.job.grid, before.runs)
    InProcess(before.job, before.storage, lambda: False).train(before.runs)
    grid = GridAt(tmp_path)
    grown, num_trained = grid.grow(4, settles=False, num_epochs=-1)
    assert (num_trained, grid.has_session) == (0, False)
    assert set(grid.seeds_of_settings().values()) == {num_seeds}
    growth = Growth((4,), MARGIN, settles=False, deadline=0)
    assert answer(grown, growth)[0] == f"All 4 settings have {num_seeds} seed{'s' * (num_seeds - 1)}."
    assert (grown.look is not None) == (num_seeds > 1)
    assert "left" not in grid.said.getvalue()
    assert growth_line(growth, num_settings=4) == "4 settings, up to 4 seeds each; trains for 0:00 at most"


def test_one_more_seed_takes_as_long_for_settings_without_a_run_as_for_the_others(tmp_path: Path) -> None:
    grid = GridAt(tmp_path)
    # Enough for one of the two stacks.
    grown, _ = grid.grow(4, settles=False, num_epochs=2)
    assert len(GridFolder(grid.storage, "g").read_runs()) == 2
    assert grown.seconds_per_seed == pytest.approx(4)


def test_more_time_settles_nothing_that_the_last_look_left_out() -> None:
    correct = np.zeros((2, 2, 400), dtype=np.bool_)
    correct[0] = True
    scores = {place: Scores(str(place), (0, 1), correct[place]) for place in range(2)}
    look, pairs = look_at(before_looks(3), scores, 2, margin=MARGIN)
    grown = Grown(["a", "b", "c"], {0: 2, 1: 2, 2: 1}, look, pairs, 400, 60.0)
    said = answer(grown, Growth((4,), MARGIN, settles=True, deadline=1))
    assert said[0] == "2 of 3 settings have 2 seeds, the others fewer."
    assert said[-1] == "The next 10 minutes would buy 2 more seeds of the 2 open settings."


def test_the_answer_for_one_setting_names_no_others() -> None:
    grown = Grown(["baseline"], {0: 2}, None, None, 0, None)
    said = answer(grown, Growth((2,), MARGIN, settles=False, deadline=1))
    assert said == ["The setting has 2 seeds.", "One setting: nothing to compare."]


def test_a_setting_that_diverges_is_out(tmp_path: Path) -> None:
    grid = GridAt(tmp_path, learning_rate=[0.001, 1e30], dropout=0.0, batch_norm=False)
    grown, _ = grid.grow(2, 3)
    assert grid.looks()[0]["can_be_best"] == ["lr 0.001"] or grid.looks() == []
    assert answer(grown, Growth((2, 3), MARGIN, settles=True)) == ["By validation, the best setting is lr 0.001."]


def test_missing_answers_are_said_in_one_line(tmp_path: Path) -> None:
    grid = GridAt(tmp_path)
    grid.grow(2)
    (tmp_path / "grids/g/looks.json").unlink()
    path = tmp_path / "runs" / grid.runs[0].run / "best/checkpoint.json"
    document = json.loads(path.read_text())
    del document["document_sha256"], document["validation"]
    path.write_bytes(with_checksum(document))
    with pytest.raises(CheckpointError, match="without keeping its validation answers"):
        GridAt(tmp_path).grow(2)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        GridAt(tmp_path).grow(2)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"num_seeds": 0}, "looks.0.num_seeds: "),
        ({"num_seeds": 5}, "looks: at [5] of 4 seeds"),
        ({"compared": ["dropout 0.9"]}, "looks: 'dropout 0.9' is not one of the settings"),
        ({"can_be_best": ["dropout 0.9"]}, "looks: 'dropout 0.9' is not one of the settings"),
        ({"settled": "A"}, "base64"),
        ({"settled": ""}, "settled: not one bit for each pair"),
    ],
)
def test_damaged_looks_are_said_to_be(change: dict[str, Any], rule: str, tmp_path: Path) -> None:
    grid = GridAt(tmp_path)
    settings = setting_names(grid.runs, 4)
    look = {"num_seeds": 2, "compared": settings, "can_be_best": settings, "settled": "AA=="} | change
    folder = GridFolder(grid.storage, "g")
    folder.claim(grid.job.grid, grid.runs)
    folder.write_looks({"margin": MARGIN, "seeds": [0, 1, 2, 3], "settings": settings, "looks": [look]})
    with pytest.raises(CheckpointError) as error:
        grid.grow(4)
    assert "grid 'g': looks.json was not written by mnist-ray" in str(error.value)
    assert rule in str(error.value)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({0: 2, 1: 2, 2: 2}, "All 3 settings have 2 seeds."),
        ({0: 2, 1: 2}, "2 of 3 settings have 2 seeds, the others none."),
        ({0: 2, 1: 1}, "1 of 3 settings have 2 seeds, the others fewer."),
    ],
)
def test_the_seeds_of_the_settings_are_said(kept: dict[int, int], said: str) -> None:
    grown = Grown(["a", "b", "c"], kept, None, None, 400, None)
    assert answer(grown, Growth((4,), MARGIN, settles=True, deadline=1))[0] == said
