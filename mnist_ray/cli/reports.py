"""The commands that say what an evaluation means: report and compare."""

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
    """Prints what an evaluation says and writes it as a page, report.html, with its charts beside it.

    Of a grid it also says what each setting changes, and stores that as effects.parquet. EVALUATION is a name that
    `mnist-ray evaluations` lists.
    """
    from dataclasses import asdict

    from mnist_ray.report.page import report_evaluation
    from mnist_ray.results.evaluation_folder import open_evaluation

    made = report_evaluation(open_evaluation(open_storage(storage), evaluation))
    if as_json:
        effects = [asdict(effect) for effect in made.grid.effects]
        facts = {
            "evaluation": evaluation,
            "grid": made.grid.grid,
            "uri": made.grid.uri,
            "report": made.uri,
            "note": made.grid.note,
        }
        click.echo(json.dumps({**facts, "effects": effects}))
        return
    _print_grid_report(made.grid, storage)
    click.echo(f"report: {made.uri}")


def _print_grid_report(found: "GridReport", storage: str) -> None:
    from mnist_ray.cli.metrics import print_metrics
    from mnist_ray.report.grid_report import print_effects

    if found.grid is None:
        print_metrics(found.metrics)
    else:
        print_test_leaderboard(found.metrics, storage, found.grid)
    if found.effects:
        print_effects(found.effects)
    if found.note:
        click.echo(found.note)
    if found.effects:
        click.echo(f"all effects: {found.uri}")


@click.command()
@click.argument("evaluation")
@click.option(
    "--baseline",
    metavar="NAME",
    help="Show only the pairs with this setting, with p values corrected over these: a variant, or a setting as the "
    "table of settings has it.",
)
@storage_option
@as_json_option
def compare(evaluation: str, baseline: str | None, storage: str, as_json: bool) -> None:
    """Says which settings of an evaluation are better, worse or tie, pair by pair; stores comparisons.parquet.

    EVALUATION is a name that `mnist-ray evaluations` lists.
    """
    from dataclasses import asdict

    from mnist_ray.report.comparison_report import comparison_row, report_comparisons
    from mnist_ray.report.comparison_text import print_comparisons
    from mnist_ray.results.evaluation_folder import open_evaluation

    found = report_comparisons(open_evaluation(open_storage(storage), evaluation), baseline=baseline)
    if as_json:
        rows = [comparison_row(pair) for pair in found.comparisons]
        selection = asdict(found.selection) if found.selection else None
        facts = {"evaluation": evaluation, "uri": found.uri, "num_pairs": found.num_pairs, "unpaired": found.unpaired}
        click.echo(json.dumps({**facts, "settings": found.settings, "comparisons": rows, "selection": selection}))
        return
    print_comparisons(found)
    if found.uri:
        click.echo(f"all pairs: {found.uri}")
