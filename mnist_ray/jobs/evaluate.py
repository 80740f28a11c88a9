"""The evaluation job: reads checkpoints and a split, writes predictions and metrics, commits them in one step."""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from mnist_ray.config.placement import ANYWHERE, Placement
from mnist_ray.config.settings import EvaluationConfig
from mnist_ray.data.datasets import stream_examples
from mnist_ray.data.examples import ExampleStream
from mnist_ray.errors import CheckpointError
from mnist_ray.evaluation.evaluation import (
    Plan,
    Shard,
    ShardEvaluator,
    ShardResult,
    ShardStream,
    check_checkpoints,
    gather,
    make_plan,
    manifest,
    num_shards,
    trained_wide_bits,
    write_tables,
)
from mnist_ray.jobs.spans import results_of_spans
from mnist_ray.models.device import choose_device
from mnist_ray.results import parquet
from mnist_ray.results.evaluated_data import common_dataset, trained_elsewhere, trained_on
from mnist_ray.results.evaluation_folder import evaluations_of_split, is_likely_there, open_evaluation
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.lineage import command_line, lineage
from mnist_ray.results.paths import RUNS, evaluation_path, report_path
from mnist_ray.results.run_folder import Checkpoint, RunFolder
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import PendingFolder, Storage, open_storage
from mnist_ray.text.escape import say_line
from mnist_ray.training.data_lines import evaluation_line


@dataclass(frozen=True)
class EvaluateJob:
    """An evaluation and where it is done.

    Attributes:
      config: data set (none for the runs' own), split and sizes.
      runs: names of the runs; empty for those of the config's grid, or without one for every finished run that was
        trained on the data set, or, if none was, that has its classes.
      storage_uri: where runs are read and the evaluation is written.
      data_dir: folder of the data sets.
      num_workers: processes that share the shards.
      report: whether the page is written too.
      placement: on which machines.
    """

    config: EvaluationConfig
    runs: tuple[str, ...]
    storage_uri: str
    data_dir: Path
    num_workers: int = 1
    report: bool = True
    placement: Placement = ANYWHERE


@dataclass(frozen=True)
class EvaluateOutcome:
    """A committed evaluation.

    Attributes:
      name: of its folder in evaluations/.
      uri: of the folder.
      already_done: whether it was there before, so that nothing was computed.
      metrics: the rows of its metrics table.
      report: URI of its page, None if none was asked for.
    """

    name: str
    uri: str
    already_done: bool
    metrics: list[dict[str, Any]]
    report: str | None


def evaluate(job: EvaluateJob) -> EvaluateOutcome:
    """Evaluates runs on a split, each example exactly once; the same evaluation again is a no-op.

    One worker on this machine evaluates in this very process; more, or a job on a cluster, are Ray workers.

    Raises:
      ConfigError: no data set is chosen, and the runs were trained on several.
      CheckpointError: a run is missing, not finished or damaged, or has other classes than the data.
      DataError, StorageError: the data or the storage can't be read.
    """
    storage = open_storage(job.storage_uri)
    storage.check()
    plan, examples = _plan(job, storage)
    committed = _committed_before(plan, examples, storage)
    already_done = committed is not None
    if committed is None:
        committed, already_done = _evaluate_and_commit(job, plan, examples, storage)
    folder = evaluation_path(committed)
    metrics = parquet.read_parquet(storage.read_committed(folder, "metrics.parquet")).to_pylist()
    page = _page(storage, committed) if job.report else None
    return EvaluateOutcome(committed, storage.uri_of(folder), already_done, metrics, page)


def _plan(job: EvaluateJob, storage: Storage) -> tuple[Plan, ExampleStream]:
    """Returns what is evaluated, and says what was understood of it."""
    checkpoints = _best_checkpoints(storage, _runs(storage, job))
    dataset = job.config.dataset or common_dataset(checkpoints)
    config = job.config.model_copy(update={"dataset": dataset})
    examples = stream_examples(dataset, config.split, data_dir=job.data_dir)
    if not job.runs and config.grid is None:
        checkpoints, left_out = trained_on(checkpoints, dataset, examples.class_names)
        if left_out:
            say_line(f"dataset {dataset}: {left_out}")
    check_checkpoints(config, checkpoints, examples)
    examples = examples.scaled_from(trained_wide_bits(checkpoints))
    elsewhere = trained_elsewhere([checkpoint.config.dataset for checkpoint in checkpoints], dataset)
    say_line(evaluation_line(config, examples, elsewhere))
    return make_plan(config, checkpoints, examples), examples


def _committed_before(plan: Plan, examples: ExampleStream, storage: Storage) -> str | None:
    """Returns the name of this very evaluation if it is in the storage.

    To tell whether it is, all images must be read. They are only where the same runs were evaluated in the same way:
    else they are read once, while they are evaluated.
    """
    if not is_likely_there(storage, plan.stem, runs=plan.runs, code_version=plan.code_version):
        return None
    data_sha256, conversion = examples.scan()
    name = replace(plan, data_sha256=data_sha256).name
    if storage.read_manifest(evaluation_path(name)) is None:
        return None
    storage.complete_commit(evaluation_path(name))
    _say_conversion(plan, conversion)
    return name


def _say_conversion(plan: Plan, conversion: str | None) -> None:
    if conversion and ":" in plan.dataset:
        say_line(f"dataset {plan.dataset}: {conversion}")


def _page(storage: Storage, evaluation: str) -> str:
    """Returns the page's URI, and writes it if it isn't there."""
    # What draws charts takes a second to import.
    from mnist_ray.report.page import PAGE, report_evaluation

    page = report_path(evaluation, PAGE)
    if storage.exists(page):
        return storage.uri_of(page)
    return report_evaluation(open_evaluation(storage, evaluation)).uri


def _runs(storage: Storage, job: EvaluateJob) -> list[str]:
    if job.runs:
        return sorted(set(job.runs))
    if job.config.grid is not None:
        names, what = GridFolder(storage, job.config.grid).run_names(), f"grid {job.config.grid!r}"
    else:
        names, what = storage.list_folders(RUNS), f"storage={storage.uri!r}"
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        is_finished = list(pool.map(lambda run: RunFolder(storage, run).is_finished(), names))
    finished = [run for run, done in zip(names, is_finished, strict=True) if done]
    if not finished:
        raise CheckpointError(f"{what}: no finished run; train one with mnist-ray train or tune")
    if job.config.grid is not None and len(finished) < len(names):
        say_line(f"{what}: {len(names) - len(finished)} of {len(names)} runs have no checkpoint")
    return finished


def _best_checkpoints(storage: Storage, runs: Sequence[str]) -> list[Checkpoint]:
    def read(run: str) -> Checkpoint:
        folder = RunFolder(storage, run)
        checkpoint = folder.best()
        # Whoever opens the tables of an evaluation opens the runs' histories beside them.
        folder.mend(say_line)
        return checkpoint

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(read, runs))


def _evaluate_and_commit(job: EvaluateJob, plan: Plan, examples: ExampleStream, storage: Storage) -> tuple[str, bool]:
    """Returns the evaluation's name and whether somebody else had committed it meanwhile."""
    pending = storage.pending_folder(evaluation_path(plan.stem))
    shards = ShardStream(examples, plan)
    try:
        with results_of_spans(
            partial(_load, plan, pending),
            ((shard.number, shard) for shard in shards),
            what=f"evaluation {plan.stem}",
            storage=storage,
            num_workers=job.num_workers,
            placement=job.placement,
        ) as done:
            results = gather(_shown(done, num_shards(examples, plan)))
        _say_conversion(plan, shards.conversion)
        plan = replace(plan, data_sha256=shards.data_sha256)
        files = write_tables(plan, results, pending)
        document = manifest(plan, len(examples))
        # Neither who evaluates nor what was read before is a part of the evaluation's content.
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        volatile = {
            "earlier_evaluations": evaluations_of_split(storage, document["data_sha256"]),
            "made_by": lineage(command_line=command_line(), num_workers=job.num_workers, gpu=gpu),
        }
        final = replace(pending, path=evaluation_path(plan.name))
        return plan.name, not final.commit(files, {**document, "volatile": volatile})
    except BaseException:
        pending.abort()
        raise


def _shown(results: Iterator[ShardResult], total: int) -> Iterator[ShardResult]:
    """Passes results on and shows on a terminal how many there are; one shard is over before a person looks."""
    console = Console(file=sys.stderr)
    if not console.is_terminal or total < 2:
        yield from results
        return
    with Progress(*Progress.get_default_columns(), console=console, transient=True) as progress:
        yield from progress.track(results, total=total, description="shards")


def _load(plan: Plan, pending: PendingFolder, use_gpu: bool | None) -> Callable[[Shard], tuple[ShardResult]]:
    evaluator = ShardEvaluator(plan, device=choose_device(use_gpu))
    return lambda shard: (evaluator.evaluate(shard, pending),)
