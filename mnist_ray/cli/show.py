"""The command show: everything about one run."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click

from mnist_ray.cli.completion import complete_run
from mnist_ray.cli.lists import date_text
from mnist_ray.cli.options import as_json_option, storage_option
from mnist_ray.config.names import dataset_name
from mnist_ray.text.doing import at_work_if_slow
from mnist_ray.text.sizes import size_text

# Epochs at the end of a learning curve that are printed; the first and the best are, too.
_LAST_EPOCHS = 3
_DIGITS_OF_HASH = 12


@click.command()
@click.argument("run", shell_complete=complete_run)
@storage_option
@as_json_option
def show(run: str, storage: str, as_json: bool) -> None:
    """Shows a run: settings, learning curve, data, checkpoints, evaluations and origin.

    The settings that differ from the variant come first; the curve's first, best and last epochs are printed, and
    --json has all.
    """
    from mnist_ray.results.run_facts import run_facts
    from mnist_ray.storage.storage import open_storage

    with at_work_if_slow(f"reading run {run} in {storage}"):
        facts = run_facts(open_storage(storage), run)
    if as_json:
        click.echo(json.dumps(facts, indent=1, default=datetime.isoformat))
        return
    _print_facts(facts)
    _print_curve(facts["history"], facts["best_epoch"])
    _print_checkpoints(facts["checkpoints"])
    _print_evaluations(facts["evaluations"])


def _print_facts(facts: Mapping[str, Any]) -> None:
    from mnist_ray.results.columns import SETTING_COLUMNS
    from mnist_ray.results.setting_words import differences, exact_text, origin
    from mnist_ray.text.tables import print_fields

    epochs = f"{facts['epochs_done']} of {facts['epochs']} epochs"
    reason = f": {facts['reason']}" if facts["reason"] else ""
    shape = "x".join(map(str, facts["image_shape"] or []))
    classes = facts["class_names"] or []
    different = differences(facts)
    others = [name for name in SETTING_COLUMNS if name not in different and name not in _NOT_SETTINGS]

    def settings(names: Sequence[str]) -> str:
        return ", ".join(f"{name}={exact_text({**facts, **different}[name])}" for name in names)

    made_by = facts["lineage"] or {}
    print_fields(
        {
            "run": facts["run"],
            "status": f"{facts['status']}{reason}, {epochs}",
            "begun": facts["begun_at"] and f"{date_text(facts['begun_at'])} UTC",
            "trained": facts["trained_at"] and f"{date_text(facts['trained_at'])} UTC, in {facts['seconds']:.1f} s",
            "setting": f"{origin(facts)}, seed {facts['seed']}",
            "differs": settings(list(different)),
            "unchanged": settings(others),
            "grid": facts["grid"],
            "data": f"{facts['train_dataset']}, fingerprint {facts['train_data_sha256'][:_DIGITS_OF_HASH]}",
            "images": shape and f"{shape}, {len(classes)} classes",
            "command": made_by.get("command_line"),
            "code": facts["code_version"],
            "made with": f"Python {made_by['python']}, torch {made_by['libraries'].get('torch', '-')}"
            if made_by
            else None,
            "made on": f"{made_by['gpu'] or made_by['cpu']}, {made_by['os']}" if made_by else None,
            "size": size_text(facts["bytes"]),
            "place": facts["uri"],
        }
    )


_NOT_SETTINGS = ("variant", "train_dataset", "model_settings", "code_sha256")


def _print_curve(history: Sequence[Mapping[str, Any]], best_epoch: int | None) -> None:
    from mnist_ray.text.tables import READING_WIDTH, cell, print_table

    if not history:
        return
    shown = [row for row in history if row["epoch"] in (1, best_epoch) or row["epoch"] > len(history) - _LAST_EPOCHS]
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate")
    lines = [
        [f"{row['epoch']}", *(f"{row[name]:.3g}" if name == "learning_rate" else cell(row[name]) for name in names)]
        for row in shown
    ]
    headings = ["epoch", *(name.replace("_", " ") for name in names)]
    print_table(headings, lines, title=f"Learning curve, best epoch {best_epoch}", width=READING_WIDTH)


def _print_checkpoints(checkpoints: Sequence[Mapping[str, Any]]) -> None:
    from mnist_ray.text.tables import print_table

    if checkpoints:
        lines = [[row["checkpoint"], size_text(row["bytes"])] for row in checkpoints]
        print_table(["checkpoint", "size"], lines)


def _print_evaluations(evaluations: Sequence[Mapping[str, Any]]) -> None:
    from mnist_ray.text.tables import READING_WIDTH, print_table

    if not evaluations:
        click.echo("not evaluated yet")
        return
    lines = [
        [
            row["evaluation"],
            date_text(row["evaluated_at"]) if row["evaluated_at"] else "-",
            dataset_name(row["dataset"]),
            row["split"],
            f"{row['accuracy']:.4f} ({row['accuracy_low']:.4f} to {row['accuracy_high']:.4f})",
        ]
        for row in evaluations
    ]
    names = ["evaluation", "date", "dataset", "split", "accuracy (95 % interval)"]
    print_table(names, lines, width=READING_WIDTH, optional=("date", "dataset", "split"))
