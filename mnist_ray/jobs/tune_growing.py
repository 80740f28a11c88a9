"""Trains a grid seed by seed, until it is settled or its budget is used."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack

from mnist_ray.analysis.comparisons import Accuracies
from mnist_ray.analysis.looks import Look, before_looks, look_at
from mnist_ray.cluster.tune_job import TuneJob, read_all_progress
from mnist_ray.errors import ConflictError, RunFailedError
from mnist_ray.grids.grid import GridRun
from mnist_ray.grids.growth import Growth
from mnist_ray.jobs.grow import grow
from mnist_ray.jobs.growing_runs import GrowingRuns, Session
from mnist_ray.jobs.looks_document import Basis, document_of, looks_in
from mnist_ray.report.growth_text import Grown, look_line
from mnist_ray.report.setting_names import names_of_runs
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.storage.storage import Storage
from mnist_ray.text.escape import say_line
from mnist_ray.tracking.grid_progress import GridProgress
from mnist_ray.tracking.trackers import Tracking


def setting_names(runs: Sequence[GridRun], num_seeds: int) -> list[str]:
    """Returns the names of a grid's settings.

    Args:
      runs: every setting with every seed, the seeds varying fastest.
    """
    firsts = runs[::num_seeds]
    name_of = names_of_runs(firsts)
    return [name_of[run.run] for run in firsts]


class GrowingGrid:
    """A grid that grows by seeds, and its folder.

    The folder lists the runs of a round before they start, so that an interrupted command goes on with them, and at the
    end only those that count.

    Attributes:
      progress: of all runs, before this command.
    """

    def __init__(self, job: TuneJob, growth: Growth, storage: Storage, runs: Sequence[GridRun]) -> None:
        """Claims the grid's name.

        Args:
          runs: every setting with every seed, the seeds varying fastest.

        Raises:
          ConflictError: see GridFolder.claim; or a scheduler has stopped a run.
        """
        self._job, self._growth, self._storage, self._runs = job, growth, storage, runs
        self._folder = GridFolder(storage, job.name)
        document = self._folder.document()
        self._listed_before = frozenset(document["runs"] if document else ())
        self._listed: Set[str] = self._listed_before
        self.progress = read_all_progress(storage, runs)
        if stopped := [row.run for row in self.progress.values() if row.status == "stopped"]:
            raise ConflictError(f"run {stopped[0]!r}: was stopped early by --scheduler asha; choose another --name")
        self._claim()
        seeds = list(job.grid.seeds)
        self._basis = Basis(growth.margin, seeds, setting_names(runs, len(seeds)))
        stored = self._folder.looks()
        self._looks = looks_in(stored, self._basis)
        self._starts_again = bool(stored and stored["looks"] and not self._looks)

    @property
    def listed(self) -> list[GridRun]:
        """The runs that the folder lists, in the grid's order."""
        return [run for run in self._runs if run.run in self._listed]

    def _claim(self) -> None:
        self._folder.claim(self._job.grid, self.listed, search=self._job.search, samples=self._job.samples())

    def grow(
        self,
        view: GridProgress,
        tracking: Tracking,
        open_session: Callable[[Callable[[], bool]], AbstractContextManager[Session]],
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> tuple[Grown, int]:
        """Trains the grid until it is settled, the last look is taken or the budget is used.

        Args:
          view: of the runs that are listed; gets the progress and a line for each look.
          tracking: gets the runs.
          open_session: called when there is something to train, with a function that tells whether it is late.
          now: the clock of the budget, in seconds.

        Returns:
          What came of it, and the number of runs that were trained.

        Raises:
          CheckpointError: a run's validation answers are missing.
          RunFailedError: the time was not enough for a single run.
          MnistRayError: see mnist_ray.errors; finished runs are kept.
        """
        num_missing = _num_unfinished(self.progress)
        if self._starts_again:
            say_line("looks.json has another margin, other seeds or other settings: the looks start again")
        with ExitStack() as stack:

            def announce(some: Sequence[GridRun]) -> None:
                self._listed |= {run.run for run in some}
                self._claim()
                view.add(some, {run.run: runs.progress[run.run] for run in some})

            runs = GrowingRuns(
                self._job,
                self._storage,
                self._runs,
                self.progress,
                lambda: stack.enter_context(open_session(lambda: runs.seconds_left() <= 0)),
                announce,
                deadline=self._growth.deadline,
                now=now,
            )
            try:
                pairs = self._rounds(runs)
                self._keep(runs)
            finally:
                tracking.update(self._listed)
                self._folder.write_runs(self.listed, runs.progress)
        return self._grown(runs, pairs), num_missing - _num_unfinished(runs.progress)

    def _rounds(self, runs: GrowingRuns) -> Accuracies | None:
        """Returns the pairs of the last look."""
        for look in self._looks:
            runs.keep(look.compared, look.num_seeds)
        taken, pairs = self._looks.copy(), None
        for look, pairs_of_look in grow(runs, self._growth, taken):
            pairs = pairs_of_look
            self._looks.append(look)
            self._folder.write_looks(document_of(self._looks, self._basis))
            say_line(self._line(look, runs))
        if self._looks == taken:
            pairs = self._pairs_again(runs)
        return pairs

    def _grown(self, runs: GrowingRuns, pairs: Accuracies | None) -> Grown:
        last = self._looks[-1] if self._looks else None
        per_seed = runs.seconds_per_seed(last.open if last and self._growth.settles else range(runs.num_settings))
        # Also the runs that were there before, and were not needed.
        places = [place // len(self._basis.seeds) for place, run in enumerate(self._runs) if run.run in self._listed]
        return Grown(self._basis.settings, Counter(places), last, pairs, runs.num_examples, per_seed)

    def _pairs_again(self, runs: GrowingRuns) -> Accuracies | None:
        """Returns the pairs of the last look of earlier commands, from the stored answers."""
        if not self._looks:
            return None
        before, last = [before_looks(runs.num_settings), *self._looks][-2:]
        scores = {place: runs.scores(place, last.num_seeds) for place in last.compared}
        return look_at(before, scores, last.num_seeds, margin=self._growth.margin)[1]

    def _line(self, look: Look, runs: GrowingRuns) -> str:
        num_runs = sum(runs.kept.values())
        last = self._growth.looks[-1]
        places = look.open if self._growth.settles else range(runs.num_settings)
        return look_line(
            look,
            self._growth,
            num_runs=num_runs,
            most_runs=num_runs + sum(last - runs.kept.get(place, 0) for place in places),
            # Don't start Ray for this.
            most_seconds=runs.seconds(runs.missing(list(places), last)) if runs.has_trained else None,
        )

    def _keep(self, runs: GrowingRuns) -> None:
        """Reduces the folder to the runs that count: those of the rounds, and those that earlier commands finished."""
        kept = {runs.run_of((place, seed)).run for place, num_seeds in runs.kept.items() for seed in range(num_seeds)}
        kept |= {run for run in self._listed_before if runs.progress[run].status != "unfinished"}
        if not kept:
            raise RunFailedError(
                f"grid {self._job.name!r}: the budget was not enough for a single run; the same command goes on"
            )
        self._listed = kept
        self._folder.keep_runs(self.listed)


def _num_unfinished(progress: Mapping[str, RunProgress]) -> int:
    return sum(row.status == "unfinished" for row in progress.values())
