"""The command that describes the tables: tables."""

import click


@click.command()
@click.option(
    "--contract", "as_contract", is_flag=True, help="Print an Open Data Contract (ODCS 3.1), YAML, for catalogs."
)
def tables(as_contract: bool) -> None:
    """Lists the tables that the other commands make: what a row is, and the columns.

    docs/tables.md describes the columns, as does --contract.
    """
    from mnist_ray.lake.contract import contract_yaml
    from mnist_ray.results.schemas import TABLES
    from mnist_ray.text.tables import print_rows

    if as_contract:
        click.echo(contract_yaml(), nl=False)
        return
    rows = [
        {"table": table.name, "a row is": table.row, "columns": ", ".join(table.names)} for table in TABLES.values()
    ]
    print_rows(rows, as_json=False, empty="")
