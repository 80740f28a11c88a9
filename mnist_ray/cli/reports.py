"""The commands that interpret an evaluation: report and compare."""

import json
from typing import TYPE_CHECKING

import click

from mnist_ray.cli.grids import print_test_leaderboard
from mnist_ray.cli.options import as_json_option, storage_option
from mnist_ray.storage.storage import open_storage

if TYPE_CHECKING:
    from mnist_ray.report.grid_report import GridReport


@click.command()
@click.argument("evaluation")
@storage_option
@as_json_option
def report(evaluation: str, storage: str, as_json: bool) -> None:
    """Prints the results of an evaluation and writes them as a page, report.html, with its charts.

    For a grid it also shows the effect of each setting, stored as effects.parquet. EVALUATION is a name that
    `mnist-ray evaluations` lists.
    """
    from dataclasses import asdict

    from mnist_ray.report.page import report_evaluation
    from mnist_ray.results.evaluation_folder import open_evaluation

    made = report_evaluation(open_evaluation(open_storage(storage), evaluation))
    if as_json:
        effects = [asdict(effect) for effect in made.grid.effects]
        facts = {"evaluation": evaluation, "grid": made.grid.grid, "uri": made.grid.uri, "report": made.uri}
        click.echo(json.dumps({**facts, "note": made.grid.note, "effects": effects}))
        return
    _print_grid_report(made.grid, storage)
    click.echo(f"report: {made.uri}")


def _print_grid_report(report: "GridReport", storage: str) -> None:
    from mnist_ray.cli.metrics import print_metrics
    from mnist_ray.report.grid_report import print_effects

    if report.grid is None:
        print_metrics(report.metrics)
    else:
        print_test_leaderboard(report.metrics, storage, report.grid)
    if report.effects:
        print_effects(report.effects)
    if report.note:
        click.echo(report.note)
    if report.effects:
        click.echo(f"all effects: {report.uri}")


@click.command()
@click.argument("evaluation")
@click.option(
    "--baseline",
    metavar="NAME",
    help="Show only the pairs with this setting, with p-values corrected over these pairs: a variant, or a setting as "
    "printed in the table of settings.",
)
@storage_option
@as_json_option
def compare(evaluation: str, baseline: str | None, storage: str, as_json: bool) -> None:
    """Shows which settings of an evaluation are better, worse or tied, pair by pair; stores comparisons.parquet.

    EVALUATION is a name that `mnist-ray evaluations` lists.
    """
    from dataclasses import asdict

    from mnist_ray.report.comparison_report import comparison_row, report_comparisons
    from mnist_ray.report.comparison_text import print_comparisons
    from mnist_ray.results.evaluation_folder import open_evaluation

    made = report_comparisons(open_evaluation(open_storage(storage), evaluation), baseline=baseline)
    if as_json:
        rows = [comparison_row(pair) for pair in made.comparisons]
        selection = asdict(made.selection) if made.selection else None
        facts = {"evaluation": evaluation, "uri": made.uri, "num_pairs": made.num_pairs, "unpaired": made.unpaired}
        click.echo(json.dumps({**facts, "settings": made.settings, "comparisons": rows, "selection": selection}))
        return
    print_comparisons(made)
    if made.uri:
        click.echo(f"all pairs: {made.uri}")
