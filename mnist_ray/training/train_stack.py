"""Trains the runs of a stack and saves each like a run trained alone; no Ray here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from mnist_ray.data.training_data import TrainingData
from mnist_ray.grids.grid import GridRun
from mnist_ray.results.history import EpochResult
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import RunProgress, RunStatus, progress_of, read_progress
from mnist_ray.results.train_state import TrainState
from mnist_ray.storage.storage import Storage
from mnist_ray.training.loop import Divergence, Training

_Member = tuple[GridRun, RunFolder]
_SAVES_AT_ONCE = 8


def train_stack(
    runs: Sequence[GridRun],
    data: TrainingData,
    *,
    storage: Storage,
    device: torch.device,
    goes_on: Callable[[RunProgress], bool] = lambda _: True,
    command_line: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[list[RunProgress]]:
    """Trains the runs of one stack to their ends, resuming each from its latest state.

    Saves each run's state after every epoch. A run that ends gets its best checkpoint; a run that diverges or is
    stopped is marked. Runs interrupted after different epochs train in separate stacks, one per epoch.

    Args:
      runs: runs that agree in settings.STACK_SETTINGS.
      goes_on: called after each epoch of an unfinished run; False stops the run.
      command_line: see RunFolder.save.
      say: see RunFolder.latest_state.

    Yields:
      After each epoch, the progress of the runs that took part.

    Raises:
      ConflictError: a run's name belongs to another config or other data.
    """
    by_epoch: dict[int, list[_Member]] = {}
    states: dict[str, TrainState] = {}
    for run in runs:
        folder = RunFolder(storage, run.run)
        folder.claim(run.config, data)
        if folder.status().is_done:
            continue
        if folder.is_marked("stopped"):
            # The run was killed before its best checkpoint was written.
            yield [_finish(run, folder)]
            continue
        state = folder.latest_state(say)
        folder.mend(say)
        if state:
            states[run.run] = state
        by_epoch.setdefault(len(state.history) if state else 0, []).append((run, folder))
    for _, members in sorted(by_epoch.items()):
        configs = [run.config for run, _ in members]
        # A state is as large as its run, so free it once training has started.
        start = [states.pop(run.run, None) for run, _ in members]
        training = Training(configs, data, device=device, states=start)
        del start
        yield from _train(members, training, data, goes_on=goes_on, command_line=command_line)


def _train(
    members: Sequence[_Member],
    training: Training,
    data: TrainingData,
    *,
    goes_on: Callable[[RunProgress], bool],
    command_line: str | None,
) -> Iterator[list[RunProgress]]:
    done_before = [member for index, member in enumerate(members) if index not in training.active]
    if done_before:
        yield [_finish(*member) for member in done_before]
    with ThreadPoolExecutor(_SAVES_AT_ONCE) as pool:
        while training.active:
            reached = training.train_epoch()

            def keep(index: int, reached: Mapping[int, EpochResult | Divergence] = reached) -> RunProgress:
                run, folder = members[index]
                outcome = reached[index]
                if isinstance(outcome, Divergence):
                    folder.mark("diverged", outcome)
                    return _progress(folder)
                state = training.state(index)
                folder.save(run.config, data, state, command_line=command_line, stack_size=len(members))
                return progress_of(run.run, RunStatus("unfinished"), state.history)

            # Saves mostly wait for the disk or the server; memory holds at most one state per thread.
            progress = dict(zip(reached, pool.map(keep, reached), strict=True))
            # A run that ends on a rung counts as an arrival there, though the decision no longer matters to it.
            judged = {index: goes_on(each) for index, each in progress.items() if each.status == "unfinished"}
            refused = [index for index in training.active if not judged[index]]
            training.stop(refused)
            for index in refused:
                reason = f"asha: not among the best after epoch {progress[index].epochs_done}"
                members[index][1].mark("stopped", reason)
            for index, each in progress.items():
                if index not in training.active and each.status == "unfinished":
                    progress[index] = _finish(*members[index])
            yield list(progress.values())


def _progress(folder: RunFolder) -> RunProgress:
    return read_progress(folder.storage, folder.run)


def _finish(run: GridRun, folder: RunFolder) -> RunProgress:
    folder.finish(run.config)
    return _progress(folder)
