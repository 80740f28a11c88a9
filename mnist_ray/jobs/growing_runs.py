"""The runs of a growing grid: trained by a tuning session, read from the storage."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from statistics import fmean
from typing import Protocol

import numpy as np

from mnist_ray.analysis.blocks import Scores
from mnist_ray.cluster.tune_job import TuneJob, read_all_progress
from mnist_ray.errors import CheckpointError
from mnist_ray.grids.grid import GridRun
from mnist_ray.jobs.estimate import makespan
from mnist_ray.jobs.grow import Cell
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.results.validation import Validation
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import Storage


class Session(Protocol):
    """See cluster.tuner.TuningSession."""

    at_once: int

    def divide(self, runs: Sequence[GridRun]) -> list[tuple[GridRun, ...]]:
        """Returns the runs of each trial."""

    def train(self, runs: Sequence[GridRun]) -> None:
        """Trains runs to their ends, or until it is late."""


# Before it is measured: workers start, and save after each epoch.
_FIRST_SLOWDOWN = 2.0


class GrowingRuns:
    """See grow.Runs.

    Attributes:
      kept: place of a setting -> number of its seeds in the result.
      progress: of every run.
    """

    def __init__(
        self,
        job: TuneJob,
        storage: Storage,
        runs: Sequence[GridRun],
        progress: dict[str, RunProgress],
        start_session: Callable[[], Session],
        announce: Callable[[Sequence[GridRun]], None],
        *,
        deadline: float = math.inf,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes the runs; trains nothing yet.

        Args:
          runs: every setting with every seed, the seeds varying fastest.
          progress: of every run.
          start_session: called when there is something to train.
          announce: called with the runs of each round before it starts.
          deadline: end of the budget on the clock `now`, in seconds.
        """
        self.num_settings = len(runs) // len(job.grid.seeds)
        self.kept: dict[int, int] = {}
        self.progress = dict(progress)
        self._job, self._storage, self._runs = job, storage, runs
        self._start_session, self._announce = start_session, announce
        self._deadline, self._now = deadline, now
        self._answers: dict[str, Validation] = {}
        # Time of a round by that of its epochs, measured in the last round.
        self._slowdown: float | None = None

    @cached_property
    def _session(self) -> Session:
        return self._start_session()

    def run_of(self, cell: Cell) -> GridRun:
        """Returns the run of a setting and a seed."""
        place, seed = cell
        return self._runs[place * len(self._job.grid.seeds) + seed]

    def missing(self, places: Sequence[int], num_seeds: int) -> list[Cell]:
        """See grow.Runs."""
        cells = [(place, seed) for seed in range(num_seeds) for place in places]
        return [cell for cell in cells if self.progress[self.run_of(cell).run].status == "unfinished"]

    def train(self, cells: Sequence[Cell]) -> None:
        """See grow.Runs.

        Raises:
          MnistRayError: see mnist_ray.errors.
        """
        if not cells:
            return
        runs = [self.run_of(cell) for cell in cells]
        self._announce(runs)
        session, started, before = self._session, self._now(), self.progress
        try:
            session.train(runs)
        finally:
            self.progress = before | read_all_progress(self._storage, runs)
        if self.seconds_left() > 0:
            self._job.check_done(self.progress[run.run] for run in runs)
        taken = sum(self.progress[run.run].seconds - before[run.run].seconds for run in runs)
        if taken > 0:
            self._slowdown = (self._now() - started) * max(session.at_once, 1) / taken

    def keep(self, places: Sequence[int], num_seeds: int) -> None:
        """See grow.Runs."""
        self.kept |= {place: max(num_seeds, self.kept.get(place, 0)) for place in places}

    def seconds_left(self) -> float:
        """See grow.Runs."""
        return self._deadline - self._now()

    def seconds(self, cells: Sequence[Cell]) -> float | None:
        """See grow.Runs; a setting's next runs take as long as its runs so far, in the stacks of the next round."""
        rates = self._seconds_per_run()
        if not rates or not cells:
            return None if cells else 0.0
        left: dict[str, float] = {}
        for cell in cells:
            run = self.run_of(cell)
            share = 1 - self.progress[run.run].epochs_done / run.config.epochs
            left[run.run] = share * rates.get(cell[0], fmean(rates.values()))
        trials = self._session.divide([self.run_of(cell) for cell in cells])
        taken = makespan([sum(left[run.run] for run in trial) for trial in trials], max(self._session.at_once, 1))
        return (self._slowdown or _FIRST_SLOWDOWN) * taken

    @property
    def has_trained(self) -> bool:
        """Whether this command has trained runs."""
        return "_session" in vars(self)

    def seconds_per_seed(self, places: Sequence[int]) -> float | None:
        """Returns how long one more seed of some settings would take; None if this command has finished no round."""
        rates = self._seconds_per_run()
        if self._slowdown is None or not rates:
            return None
        unknown = fmean(rates.values())
        return self._slowdown * sum(rates.get(place, unknown) for place in places) / max(self._session.at_once, 1)

    def _seconds_per_run(self) -> dict[int, float]:
        """Returns the mean time of each setting's finished runs; place -> seconds."""
        rates = {}
        for place in range(self.num_settings):
            rows = [self.progress[self.run_of((place, seed)).run] for seed in range(len(self._job.grid.seeds))]
            if times := [row.seconds for row in rows if row.status == "finished"]:
                rates[place] = fmean(times)
        return rates

    def scores(self, place: int, num_seeds: int) -> Scores | None:
        """See grow.Runs.

        Raises:
          CheckpointError: a run's validation answers are missing, or are of other examples.
        """
        seeds = self._job.grid.seeds
        rows = {seeds[seed]: self.progress[self.run_of((place, seed)).run] for seed in range(num_seeds)}
        finished = {seed: row.run for seed, row in rows.items() if row.status != "diverged"}
        unread = [run for run in finished.values() if run not in self._answers]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            self._answers |= zip(unread, pool.map(self._read_answers, unread), strict=True)
        if not finished:
            return None
        first = next(iter(self._answers.values()))
        for run in finished.values():
            if self._answers[run].examples != first.examples:
                raise CheckpointError(f"run {run!r}: was validated on other examples than the rest of the grid")
        return Scores(str(place), tuple(finished), np.stack([self._answers[run].correct for run in finished.values()]))

    @property
    def num_examples(self) -> int:
        """Validation examples; 0 before any answers were read."""
        return len(next(iter(self._answers.values())).correct) if self._answers else 0

    def _read_answers(self, run: str) -> Validation:
        answers = RunFolder(self._storage, run).best_validation()
        if answers is None:
            raise CheckpointError(
                f"run {run!r}: an older version trained it, without keeping its validation answers, by which the "
                "settings are compared; choose another --name"
            )
        return answers
