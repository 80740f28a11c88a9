"""The commands that say what an evaluation means: compare."""

import json

import click

from mnist_ray.cli_options import as_json_option, storage_option


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

    found = report_comparisons(storage, evaluation, baseline=baseline)
    if as_json:
        rows = [comparison_row(pair) for pair in found.comparisons]
        selection = asdict(found.selection) if found.selection else None
        facts = {"evaluation": evaluation, "uri": found.uri, "num_pairs": found.num_pairs, "unpaired": found.unpaired}
        click.echo(json.dumps({**facts, "settings": found.settings, "comparisons": rows, "selection": selection}))
        return
    print_comparisons(found)
    if found.uri:
        click.echo(f"all pairs: {found.uri}")
