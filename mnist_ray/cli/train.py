"""The command that trains one run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mnist_ray.cli.code import code_options
from mnist_ray.cli.completion import complete_dataset, complete_variant
from mnist_ray.cli.help import Command, option
from mnist_ray.cli.options import (
    DATASET_HELP,
    IN_JOB_YAML,
    ClusterOptions,
    as_json_option,
    cluster_options,
    data_dir_option,
    log_option,
    print_trackers,
    say_next,
    storage_option,
)
from mnist_ray.cli.plan import print_plan
from mnist_ray.cli.setting_options import config_options, parse_settings
from mnist_ray.cli.submission import cluster_to_submit_to, submit_job
from mnist_ray.cli.worker_range import WorkerRange
from mnist_ray.cluster.train_job import MAX_FAILURES
from mnist_ray.config.default_names import default_run_name
from mnist_ray.config.given_settings import given_config
from mnist_ray.config.names import check_name, loading_words
from mnist_ray.config.own_settings import flat
from mnist_ray.config.placement import Workers
from mnist_ray.config.settings import TrainConfig, check_setting
from mnist_ray.config.variants import VARIANTS
from mnist_ray.config.yaml_files import read_yaml, yaml_text
from mnist_ray.data.datasets import data_folder
from mnist_ray.errors import ConfigError
from mnist_ray.grids.grid import is_axis
from mnist_ray.text.doing import at_work
from mnist_ray.text.sizes import count_text


@click.command(cls=Command)
@option(
    "--variant",
    group="Run",
    default=None,
    metavar="NAME",
    shell_complete=complete_variant,
    help=f"Preset: {', '.join(VARIANTS)}.  [default: baseline]",
)
@option(
    "--dataset",
    group="Data",
    default=None,
    metavar="NAME",
    shell_complete=complete_dataset,
    help=f"{DATASET_HELP}  [default: mnist]",
)
@option(
    "--name",
    group="Run",
    default=None,
    metavar="NAME",
    help="Name of the run.  [default: VARIANT-DATASET-sSEED, with the settings that differ from the variant]",
)
@storage_option
@data_dir_option
@option(
    "--num-workers",
    group="Where it runs",
    type=WorkerRange(),
    default="1",
    show_default=True,
    metavar="N|MIN:MAX",
    help="Processes that share every batch. MIN:MAX: as many as there are; the run goes on when nodes leave or come.",
)
@option(
    "--resume/--no-resume",
    group="Run",
    default=True,
    help="Go on with the run that has the name, to more epochs if given; or refuse the name.  [default: go on]",
)
@option(
    "--max-failures",
    group="Where it runs",
    metavar="N",
    type=click.IntRange(min=0),
    default=None,
    help="Restarts after a worker dies; a number makes Ray watch over a single worker, too.  "
    f"[default: {MAX_FAILURES}]",
)
@option(
    "--config",
    "config_file",
    group="Run",
    type=click.Path(),
    metavar="FILE.yaml",
    help="Settings; options override them.",
)
@option(
    "--set", "overrides", group="Run", multiple=True, metavar="KEY=VALUE", help="A setting by its name in the config."
)
@log_option
@config_options(without=("variant", "dataset", "code_sha256"))
@code_options
@cluster_options
@as_json_option
@click.pass_context
def train(
    context: click.Context,
    /,
    variant: str | None,
    dataset: str | None,
    name: str | None,
    storage: str,
    data_dir: str | None,
    num_workers: Workers,
    resume: bool,
    max_failures: int | None,
    config_file: str | None,
    overrides: Sequence[str],
    log: tuple[str, ...],
    cluster: ClusterOptions,
    as_json: bool,
    **settings: Any,
) -> None:
    """Trains one run and writes its folder, with the best checkpoint, to the storage.

    Defaults of settings are those of the variant baseline; another variant changes some of them.
    """
    chosen = {**settings, "dataset": dataset, "variant": variant}
    config = _train_config(config_file, overrides, chosen)
    run = check_name(default_run_name(config) if name is None else name)
    if context.obj.get("plan"):
        with at_work(loading_words(config.dataset)):
            from mnist_ray.jobs.estimate import plan_run

            planned = plan_run(config, run, storage, data_folder(data_dir), num_workers)
        print_plan(planned, run, as_json=as_json)
        return
    least, most = num_workers
    target = cluster_to_submit_to(cluster.address, name=run, storage=storage)
    if target:
        text = yaml_text(config.model_dump(mode="json"))
        replace = {**IN_JOB_YAML, "config_file": "job.yaml", "name": run}
        submit_job(target, context, replace, name=run, num_workers=least, config_yaml=text)
        return
    with at_work(loading_words(config.dataset)):
        # torch takes seconds to import.
        from mnist_ray.cluster.train_job import TrainJob
        from mnist_ray.jobs.train import train as train_run

        job = TrainJob(
            config, run, storage, data_folder(data_dir), most, resume, max_failures, log=log,
            placement=cluster.placement, least_workers=least if least < most else None,
        )  # fmt: skip
        outcome = train_run(job)
    best = outcome.best
    if as_json:
        click.echo(json.dumps({"run": run, "epochs": len(outcome.history), "best_epoch": best.epoch,
                               "val_loss": best.val_loss, "val_accuracy": best.val_accuracy,
                               "already_done": outcome.already_done}))  # fmt: skip
        return
    from mnist_ray.text.tables import print_text

    done = "was finished already" if outcome.already_done else "is finished"
    print_text(
        f"{run} {done}: best of {count_text(len(outcome.history), 'epoch')} is {best.epoch}, validation accuracy "
        f"{best.val_accuracy:.4f}, loss {best.val_loss:.4f}"
    )
    say_next("evaluate", "--run", run, "--storage", storage, data_dir=data_dir)
    print_trackers(log, storage)


def _train_config(config_file: str | None, overrides: Sequence[str], options: dict[str, Any]) -> TrainConfig:
    settings = {} if config_file is None else read_yaml(Path(config_file))
    given = parse_settings(overrides, options)
    for name, value in [*settings.items(), *given.items()]:
        # An argument of one's own network may be a list.
        if name in TrainConfig.model_fields and is_axis(name, value) and value:
            raise ConfigError(f"{name}: train takes one value, not {len(value)}; `mnist-ray tune` makes a grid of them")
    for name, value in settings.items():
        if name != "variant":
            # Checked here to name the file; rules across settings are checked together with the options.
            check_setting(name, value, f"--config {config_file!r}")
    return given_config({**flat(settings), **given})
