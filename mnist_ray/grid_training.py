"""Training the runs of a stack, each left in the storage as a run that was trained alone; no Ray here."""

from collections.abc import Callable, Iterator, Sequence

import torch

from mnist_ray.checkpoints import RunFolder
from mnist_ray.grids import GridRun
from mnist_ray.run_progress import RunProgress, RunStatus, progress_of
from mnist_ray.storage import Storage
from mnist_ray.training import Divergence, StackTraining, TrainState
from mnist_ray.training_data import TrainingData


def train_stack(
    runs: Sequence[GridRun],
    data: TrainingData,
    *,
    storage: Storage,
    device: torch.device,
    goes_on: Callable[[RunProgress], bool] = lambda _: True,
) -> Iterator[list[RunProgress]]:
    """Trains runs that fit into one stack to their ends, from wherever each of them is.

    After every epoch each run's state is saved; a run that ends gets its best checkpoint, one that diverges or is
    stopped a note of that. Runs that were interrupted after different epochs train in a stack for each epoch.

    Args:
      runs: they agree in grids.STACK_FIELDS.
      data: their examples.
      storage: where the runs' folders are.
      device: where to compute.
      goes_on: asked after each epoch of a run that isn't done; False stops the run.

    Yields:
      After each epoch, the progress of the runs that took part.

    Raises:
      ConflictError: a run's name belongs to another config or other data.
    """
    by_epoch: dict[int, list[tuple[GridRun, RunFolder, TrainState | None]]] = {}
    for run in runs:
        folder = RunFolder(storage, run.run)
        folder.claim(run.config, data, resume=True)
        if not folder.status().is_done:
            state = folder.latest_state()
            by_epoch.setdefault(len(state.history) if state else 0, []).append((run, folder, state))
    for _, members in sorted(by_epoch.items()):
        yield from _train(members, data, device=device, goes_on=goes_on)


def _train(
    members: Sequence[tuple[GridRun, RunFolder, TrainState | None]],
    data: TrainingData,
    *,
    device: torch.device,
    goes_on: Callable[[RunProgress], bool],
) -> Iterator[list[RunProgress]]:
    configs = [run.config for run, _, _ in members]
    training = StackTraining(configs, data, device=device, states=[state for _, _, state in members])
    done_before = [index for index in range(len(members)) if index not in training.active]
    if done_before:
        yield [_finish(members[index][1]) for index in done_before]
    while training.active:
        reached = training.train_epoch()
        progress = {
            index: _keep(members[index][0], members[index][1], data, outcome) for index, outcome in reached.items()
        }
        refused = [index for index in training.active if not goes_on(progress[index])]
        training.stop(refused)
        for index in refused:
            reason = f"asha: not among the best after epoch {progress[index].epochs_done}"
            members[index][1].mark("stopped", reason)
        for index, found in progress.items():
            if index not in training.active and found.status == "unfinished":
                progress[index] = _finish(members[index][1])
        yield list(progress.values())


def _keep(run: GridRun, folder: RunFolder, data: TrainingData, outcome: TrainState | Divergence) -> RunProgress:
    """Stores what came of a run's epoch."""
    if isinstance(outcome, Divergence):
        folder.mark("diverged", str(outcome))
        return progress_of(run.run, folder.status(), folder.history())
    folder.save(run.config, data, outcome)
    return progress_of(run.run, RunStatus("unfinished"), outcome.history)


def _finish(folder: RunFolder) -> RunProgress:
    folder.finish()
    return progress_of(folder.run, folder.status(), folder.history())
