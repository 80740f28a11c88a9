"""The command grids, and what other commands say about a grid."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from mnist_ray.cli.lists import DATE_COLUMNS, Columns, as_is, list_options, print_list
from mnist_ray.config.settings import GridConfig
from mnist_ray.grids.grid import GRIDS, grid_settings, read_grid, shown_settings
from mnist_ray.storage.storage import Storage
from mnist_ray.text.doing import at_work_if_slow
from mnist_ray.text.sizes import size_text

if TYPE_CHECKING:
    from mnist_ray.results.listing import Selection


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


_COLUMNS: Columns = {
    "grid": ("grid", as_is),
    **DATE_COLUMNS,
    "size": ("bytes", size_text),
    "axes": ("axes", as_is),
    "seeds": ("num_seeds", as_is),
    "runs": ("status", as_is),
    "best setting": ("best_setting", as_is),
    "val accuracy": ("best_val_accuracy_mean", as_is),
}


@click.command()
@list_options
def grids(selection: "Selection", storage: str, as_json: bool) -> None:
    """Lists the named grids, and the grids of a storage, the newest last.

    Counts the runs that are in the storage now. The date (UTC) is that of the last run, the size that of all runs; the
    best setting has the highest validation accuracy, mean over its seeds.
    """
    from mnist_ray.storage.storage import open_storage
    from mnist_ray.text.tables import print_text

    with at_work_if_slow(f"reading the grids in {storage}"):
        rows = grid_rows(open_storage(storage))
    if not as_json:
        click.echo("named grids, for mnist-ray tune --grid:")
        for name in GRIDS:
            print_text(f"  {name}: {grid_words(read_grid(grid_settings(name), seeds=None, overrides={}, source=name))}")
        click.echo(f"grids in {storage}:")
    optional = ("best setting", "runs", "axes", "seeds", "time", "size")
    print_list(rows, _COLUMNS, selection, as_json=as_json, empty="  none", optional=optional, printed=_printed)


def grid_rows(storage: Storage) -> list[dict[str, Any]]:
    """Returns all grids of a storage, each with its status, date, size, and best setting and run.

    Raises:
      StorageError: the storage can't be read.
    """
    from mnist_ray.results.inventory import read_inventory
    from mnist_ray.results.listing import damaged_row, stored
    from mnist_ray.results.paths import grid_path

    found = read_inventory(storage)
    runs = {row["run"]: row for row in found.runs}
    rows = [damaged_row("grid", name, reason) for name, reason in found.damaged_grids.items()]
    for grid in found.grids:
        there = [runs[run] for run in grid["runs"] if run in runs]
        is_whole = grid["num_finished"] + grid["num_stopped"] + grid["num_diverged"] == grid["num_runs"]
        rows.append(
            {
                **grid,
                "status": "finished" if is_whole else "unfinished",
                "date": grid["trained_at"] or grid["begun_at"],
                # A growing grid may end before its last seed.
                "num_seeds": len({row["seed"] for row in there}) or len(grid["seeds"]),
                **_best(grid, there),
            }
        )

    def num_bytes(row: Mapping[str, Any]) -> int:
        return found.grid_bytes[row["grid"]] + sum(found.run_bytes.get(run, 0) for run in row.get("runs", []))

    return [stored(row, "grid", num_bytes(row), storage.uri_of(grid_path(row["grid"]))) for row in rows]


def _best(grid: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from mnist_ray.analysis.leaderboard import leaderboard
    from mnist_ray.results.setting_words import named

    columns = _varying(grid)
    board = [row for row in leaderboard(runs, columns) if row["num_done"]]
    done = [row for row in runs if row["checkpoint"] is not None]
    best_run = max(done, key=lambda row: row["best_val_accuracy"], default=None)
    return {
        "best_setting": named(None, {name: board[0][name] for name in columns}) if board else None,
        "best_val_accuracy_mean": board[0]["val_accuracy_mean"] if board else None,
        "best_run": best_run and best_run["run"],
        "best_val_accuracy": best_run and best_run["best_val_accuracy"],
    }


def _varying(grid: Mapping[str, Any]) -> list[str]:
    """Returns the axes of a grid with several levels."""
    return [name for name, levels in grid["axes"].items() if len(levels) > 1] or ["variant"]


def _printed(rows: Sequence[dict[str, Any]]) -> tuple[str, Sequence[dict[str, Any]]]:
    def line(row: Mapping[str, Any]) -> dict[str, Any]:
        if row["status"] == "damaged":
            return dict(row)
        kinds = ("finished", "stopped", "diverged", "unfinished", "missing", "damaged")
        axes = (f"{name} ({len(levels)})" if isinstance(levels, list) else name for name, levels in row["axes"].items())
        counts = ", ".join(f"{row[f'num_{kind}']} {kind}" for kind in kinds if row[f"num_{kind}"])
        return {**row, "axes": " x ".join(axes), "status": counts}

    return "", list(map(line, rows))


def grid_words(grid: GridConfig) -> str:
    """Returns the axes of a grid in words: 'dropout {0,0.2} x batch_norm {no,yes}'."""
    from mnist_ray.results.setting_words import exact_text

    axes = (f"{name} {{{','.join(map(exact_text, levels))}}}" for name, levels in grid.axes.items())
    return " x ".join(axes) or "one setting"
