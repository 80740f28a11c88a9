"""The command grids, and what other commands say about a grid."""

import json
from collections.abc import Sequence
from typing import Any

import click

from mnist_ray.cli.options import as_json_option, storage_option
from mnist_ray.config.settings import GridConfig
from mnist_ray.grids.grid import GRIDS, grid_settings, read_grid


def shown_settings(grid: GridConfig) -> tuple[str, ...]:
    """Returns the settings that distinguish the runs of a grid."""
    return (*grid.axes, *grid.ranges) or ("variant",)


def print_test_leaderboard(metrics: Sequence[dict[str, Any]], storage: str, grid_name: str) -> None:
    """Prints a grid's settings, ranked by validation results, with their test accuracies."""
    from mnist_ray.analysis.leaderboard import print_leaderboard, test_leaderboard
    from mnist_ray.cli.metrics import metrics_title
    from mnist_ray.results.grid_folder import GridFolder
    from mnist_ray.storage.storage import open_storage

    folder = GridFolder(open_storage(storage), grid_name)
    columns = shown_settings(folder.settings())
    board = test_leaderboard(folder.read_runs(), metrics, columns)
    print_leaderboard(board, columns, title=metrics_title(metrics))


@click.command()
@storage_option
@as_json_option
def grids(storage: str, as_json: bool) -> None:
    """Lists the named grids, and the grids of a storage."""
    from mnist_ray.results.listing import list_grids
    from mnist_ray.text.tables import print_rows

    rows = list_grids(storage)
    if not as_json:
        click.echo("named grids, for mnist-ray tune --grid:")
        for name in GRIDS:
            click.echo(f"  {name}: {grid_words(read_grid(grid_settings(name), seeds=None, overrides={}, source=name))}")
        click.echo(f"grids in {storage}:")
    print_rows(rows, as_json=as_json, empty="  none")


def grid_words(grid: GridConfig) -> str:
    """Returns the axes of a grid in words: 'dropout {0, 0.2} x batch_norm {false, true}'."""
    axes = (f"{name} {{{', '.join(json.dumps(level) for level in levels)}}}" for name, levels in grid.axes.items())
    return " x ".join(axes) or "one setting"
