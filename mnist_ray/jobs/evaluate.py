"""The evaluation job: reads checkpoints and a split, writes predictions and metrics, commits them atomically."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mnist_ray.config.placement import ANYWHERE, Placement
from mnist_ray.config.settings import EvaluationConfig
from mnist_ray.data.datasets import DATASETS, stream_examples
from mnist_ray.data.examples import ExampleStream
from mnist_ray.data.image_shape import ImageForm
from mnist_ray.data.source_files import change_of, source_files
from mnist_ray.errors import CheckpointError, ConflictError
from mnist_ray.evaluation.plan import Plan, check_checkpoints, form_of, make_plan, manifest, trained_wide_bits
from mnist_ray.evaluation.shards import EVALUATED, Shard, ShardEvaluator, ShardResult, ShardStream, gather, scan
from mnist_ray.evaluation.tables import write_tables
from mnist_ray.jobs.spans import results_of_spans
from mnist_ray.models.device import choose_device
from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.results.evaluated_data import common_dataset, trained_elsewhere, trained_on
from mnist_ray.results.evaluation_folder import EvaluationFolder, evaluations_of_split, open_evaluation
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.kinds import RUN, existing
from mnist_ray.results.lineage import command_line, lineage
from mnist_ray.results.paths import PAGE, evaluation_path, report_path
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import PendingFolder, Storage, open_storage
from mnist_ray.text.doing import counted
from mnist_ray.text.escape import say_line
from mnist_ray.text.sizes import count_text
from mnist_ray.training.data_lines import evaluation_line


@dataclass(frozen=True)
class EvaluateJob:
    """An evaluation and where to run it.

    Attributes:
      config: data set (None for the one the runs were trained on), split and sizes.
      runs: names of the runs; if empty, the runs of the config's grid, or, without a grid, every finished run that was
        trained on the data set; if there are none, every finished run with its classes.
      storage_uri: URI of the storage with the runs; the evaluation is written there too.
      data_dir: folder of the data sets.
      num_workers: processes that share the shards.
      report: whether to write the page too.
      name: name of the evaluation; None to derive it from what is asked.
      placement: where the workers run.
    """

    config: EvaluationConfig
    runs: tuple[str, ...]
    storage_uri: str
    data_dir: Path
    num_workers: int = 1
    report: bool = True
    name: str | None = None
    placement: Placement = ANYWHERE


@dataclass(frozen=True)
class EvaluateOutcome:
    """A committed evaluation.

    Attributes:
      name: name of its folder in evaluations/.
      uri: URI of the folder.
      already_done: whether it existed already, so that nothing was computed.
      metrics: the rows of its metrics table.
      report: URI of its page, or None if no page was requested.
    """

    name: str
    uri: str
    already_done: bool
    metrics: list[dict[str, Any]]
    report: str | None


def evaluate(job: EvaluateJob) -> EvaluateOutcome:
    """Evaluates runs on a split, each example exactly once; idempotent.

    A single worker on this machine is this process; several workers, or a job on a cluster, run on Ray.

    Raises:
      ConfigError: no data set is chosen, and the runs were trained on several.
      CheckpointError: a run is missing, unfinished or damaged, or its classes differ from the data's.
      ConflictError: the name belongs to another evaluation, or the data has changed since.
      DataError, StorageError: the data or the storage can't be read.
    """
    storage = open_storage(job.storage_uri)
    storage.check()
    plan, examples = _plan(job, storage)
    # Before the images are read: a change after that is a change.
    sources = source_files(plan.dataset)
    already_done = _is_committed(plan, examples, sources, storage) or not _evaluate_and_commit(
        job, plan, examples, sources, storage
    )
    folder = open_evaluation(storage, plan.name)
    page = _page(folder) if job.report else None
    return EvaluateOutcome(plan.name, folder.uri, already_done, folder.rows("metrics"), page)


def _plan(job: EvaluateJob, storage: Storage) -> tuple[Plan, list[ExampleStream]]:
    """Returns the plan and its examples in each of its forms, and prints a summary of the data."""
    checkpoints = _best_checkpoints(storage, _runs(storage, job))
    dataset = job.config.dataset or common_dataset(checkpoints)
    config = job.config.model_copy(update={"dataset": dataset})

    def examples_in(form: ImageForm) -> ExampleStream:
        return stream_examples(dataset, config.split, data_dir=job.data_dir, options=form.options)

    first = form_of(dataset, checkpoints[0])
    examples = examples_in(first)
    if not job.runs and config.grid is None:
        shape = examples.image_shape if dataset in DATASETS else None
        checkpoints, left_out = trained_on(checkpoints, dataset, examples.class_names, shape)
        if left_out:
            say_line(f"dataset {dataset}: {left_out}")
    check_checkpoints(config, checkpoints, examples)
    elsewhere = trained_elsewhere([checkpoint.config.dataset for checkpoint in checkpoints], dataset)
    say_line(evaluation_line(config, examples, elsewhere))
    plan, wide_bits = make_plan(config, checkpoints, examples, name=job.name), trained_wide_bits(checkpoints)
    in_forms = [examples if form == first else examples_in(form) for form in plan.forms]
    return plan, [of_form.scaled_from(wide_bits) for of_form in in_forms]


def _is_committed(
    plan: Plan, examples: Sequence[ExampleStream], sources: Mapping[str, Any] | None, storage: Storage
) -> bool:
    """Tells whether this evaluation is already committed, over the same data.

    The images are read only if their files have changed: for other reasons than their content, if all is well.

    Raises:
      ConflictError: its name belongs to another evaluation, or the data has changed.
    """
    path = evaluation_path(plan.name)
    manifest = storage.read_manifest(path)
    if manifest is None:
        return False
    if (asked := manifest.get("request_hash")) != plan.request_hash:
        what = "with schema version 2" if asked is None else f"for {_what_differs(manifest, plan)}"
        raise ConflictError(f"evaluation {plan.name!r}: exists {what}; choose another --name")
    evaluated = manifest["volatile"].get("sources")
    if sources is None or evaluated is None or sources["sha256"] != evaluated["sha256"]:
        data_sha256, conversion = scan(examples)
        if data_sha256 != manifest["data_sha256"]:
            change = change_of(evaluated, sources) if evaluated and sources else "other content"
            raise ConflictError(
                f"evaluation {plan.name!r}: exists, and {plan.dataset} has changed since ({change}); keep both with "
                "--name OTHER"
            )
        _say_conversion(plan, conversion)
    storage.complete_commit(path)
    return True


def _what_differs(manifest: Mapping[str, Any], plan: Plan) -> str:
    """Returns in words what was asked for under the same name."""
    there, here = manifest["config"], plan.config.model_dump(mode="json")
    names = [name for name, value in here.items() if there.get(name) != value]
    if names:
        return f"{names[0]}={there.get(names[0])!r}, not {here[names[0]]!r}"
    if manifest["runs"] != plan.runs:
        return "other runs or checkpoints"
    return "other code" if manifest["code_version"] != plan.code_version else "runs with another history"


def _say_conversion(plan: Plan, conversion: str | None) -> None:
    if conversion and ":" in plan.dataset:
        say_line(f"dataset {plan.dataset}: {conversion}")


def _page(folder: EvaluationFolder) -> str:
    """Returns the page's URI; writes the page if it doesn't exist."""
    page = report_path(folder.name, PAGE)
    if folder.storage.exists(page):
        return folder.storage.uri_of(page)
    # The plotting libraries take a second to import.
    from mnist_ray.report.page import report_evaluation

    return report_evaluation(folder).uri


def _runs(storage: Storage, job: EvaluateJob) -> list[str]:
    if job.runs:
        return sorted(set(job.runs))
    if job.config.grid is not None:
        names, what = GridFolder(storage, job.config.grid).run_names(), f"grid {job.config.grid!r}"
    else:
        names, what = existing(storage, RUN), f"storage={storage.uri!r}"
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        is_finished = list(pool.map(lambda run: RunFolder(storage, run).is_finished(), names))
    finished = [run for run, done in zip(names, is_finished, strict=True) if done]
    if not names:
        raise CheckpointError(f"{what}: no runs; train one with mnist-ray train or tune")
    if not finished:
        raise CheckpointError(
            f"{what}: no finished run among {len(names)}; mnist-ray runs shows how far each is, and the command that "
            "trains it goes on"
        )
    if job.config.grid is not None and len(finished) < len(names):
        say_line(f"{what}: {len(names) - len(finished)} of {len(names)} runs have no checkpoint")
    return finished


def _best_checkpoints(storage: Storage, runs: Sequence[str]) -> list[Checkpoint]:
    def read(run: str) -> Checkpoint:
        folder = RunFolder(storage, run)
        checkpoint = folder.best()
        # The evaluation's tables are read together with the runs' histories.
        folder.mend(say_line)
        return checkpoint

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(read, runs))


def _evaluate_and_commit(
    job: EvaluateJob,
    plan: Plan,
    examples: Sequence[ExampleStream],
    sources: Mapping[str, Any] | None,
    storage: Storage,
) -> bool:
    """Returns whether this process committed the evaluation; False if another one did so first."""
    pending = storage.pending_folder(evaluation_path(plan.name))
    try:
        begun_at = pending.begun_at()
        if _is_committed(plan, examples, sources, storage):
            # By another process, before this one began.
            pending.abort()
            return False
        plan = replace(plan, evaluated_at=begun_at)
        num_images = count_text(len(examples[0]), f"{plan.config.split} image")
        say_line(f"evaluating {count_text(len(plan.checkpoints), 'run')} on {num_images}")
        shards = ShardStream(examples, plan)
        with results_of_spans(
            partial(_load, plan, pending),
            ((shard.number, shard) for shard in shards),
            what=f"evaluation {plan.name}",
            storage=storage,
            num_workers=job.num_workers,
            placement=job.placement,
        ) as done:
            results = gather(counted(done, EVALUATED, total=len(examples[0]), size=lambda result: result.num_images))
        _say_conversion(plan, shards.conversion)
        plan = replace(plan, fingerprints=shards.fingerprints)
        files = write_tables(plan, results, pending)
        document = manifest(plan, len(examples[0]))
        # Facts about this execution and earlier evaluations are not part of the evaluation's content.
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        volatile = {
            "evaluated_at": begun_at.isoformat(),
            "sources": sources,
            "earlier_evaluations": evaluations_of_split(storage, document["data_sha256"]),
            "made_by": lineage(command_line=command_line(), num_workers=job.num_workers, gpu=gpu),
        }
        return pending.commit(files, {**document, "volatile": volatile})
    except BaseException:
        pending.abort()
        raise


def _load(plan: Plan, pending: PendingFolder, use_gpu: bool | None) -> Callable[[Shard], tuple[ShardResult]]:
    evaluator = ShardEvaluator(plan, device=choose_device(use_gpu))
    return lambda shard: (evaluator.evaluate(shard, pending),)
