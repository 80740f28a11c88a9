"""The commands that interpret an evaluation: report and compare."""

import json
from dataclasses import asdict

import click

from mnist_ray.cli.completion import complete_evaluation
from mnist_ray.cli.grids import print_test_leaderboard
from mnist_ray.cli.metrics import print_metrics
from mnist_ray.cli.options import as_json_option, margin_option, storage_option
from mnist_ray.storage.storage import open_storage
from mnist_ray.text.doing import at_work
from mnist_ray.text.tables import print_text


@click.command()
@click.argument("evaluation", shell_complete=complete_evaluation)
@margin_option
@storage_option
@as_json_option
def report(evaluation: str, margin: float, storage: str, as_json: bool) -> None:
    """Prints the results of an evaluation and writes them as a page with charts.

    The page is report.html. For a grid it also shows the effect of each setting, stored as the table effects.
    EVALUATION is a name that `mnist-ray evaluations` lists, the beginning of one, or latest.
    """
    with at_work(f"reading evaluation {evaluation}"):
        # scipy and matplotlib take seconds to import.
        from mnist_ray.report.comparison_text import print_effects
        from mnist_ray.report.grid_report import effect_rows
        from mnist_ray.report.page import report_evaluation
        from mnist_ray.results.evaluation_folder import find_evaluation
        from mnist_ray.tracking.evaluations import log_evaluation

        folder = find_evaluation(open_storage(storage), evaluation)
        made = report_evaluation(folder, margin=margin / 100)
        log_evaluation(storage, folder.name)
    findings, grid = made.findings, made.findings.grid
    if as_json:
        facts = {"evaluation": folder.name, "grid": grid.grid, "uri": grid.uri, "report": made.uri, "note": grid.note}
        click.echo(json.dumps({**facts, "answer": findings.answer, "effects": effect_rows(grid.effects)}))
        return
    for sentence in findings.answer:
        print_text(sentence)
    if grid.grid is None:
        print_metrics(findings.evaluated.rows)
    else:
        print_test_leaderboard(findings.evaluated.rows, storage, grid.grid)
    print_effects(grid.effects)
    if grid.note:
        print_text(grid.note)
    if grid.uri:
        print_text(f"all effects: {grid.uri}")
    print_text(f"report: {made.uri}")


@click.command()
@click.argument("evaluation", shell_complete=complete_evaluation)
@click.option(
    "--baseline",
    metavar="NAME",
    help="Show only the pairs with this setting, as a family of their own: a variant, or a setting as printed in "
    "the table of settings.",
)
@margin_option
@storage_option
@as_json_option
def compare(evaluation: str, baseline: str | None, margin: float, storage: str, as_json: bool) -> None:
    """Says which regularization helps, by how much, and how sure that is.

    First the answer in sentences, then the effects of a grid's settings, the settings, and their pairs: better, worse,
    equivalent or unresolved. Stores the table comparisons, and effects for a grid. EVALUATION is a name that
    `mnist-ray evaluations` lists, the beginning of one, or latest.
    """
    with at_work(f"reading evaluation {evaluation}"):
        # scipy takes a second to import.
        from mnist_ray.report.comparison_report import comparison_rows
        from mnist_ray.report.comparison_text import print_findings
        from mnist_ray.report.findings import find
        from mnist_ray.report.grid_report import effect_rows
        from mnist_ray.results.evaluation_folder import find_evaluation

        folder = find_evaluation(open_storage(storage), evaluation)
        findings = find(folder, baseline=baseline, margin=margin / 100)
    report, pairs = findings.comparison, findings.comparison.pairs
    if as_json:
        facts = {
            "evaluation": folder.name,
            "uri": report.uri,
            "answer": findings.answer,
            "num_pairs": report.num_pairs,
            "unpaired": [] if pairs is None else pairs.unpaired,
            "settings": report.settings,
            "effects": effect_rows(findings.grid.effects),
            "comparisons": comparison_rows(pairs, report.num_examples) if pairs else [],
            "selection": asdict(report.selection) if report.selection else None,
        }
        click.echo(json.dumps(facts))
        return
    print_findings(findings)
    if report.uri:
        print_text(f"all pairs: {report.uri}")
