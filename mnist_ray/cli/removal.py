"""The commands that delete: rm and prune."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence

import click

from mnist_ray.cli.completion import complete_evaluation, complete_grid, complete_run
from mnist_ray.cli.help import Group
from mnist_ray.cli.options import FiniteRange, storage_option
from mnist_ray.errors import ConfigError
from mnist_ray.text.doing import at_work, at_work_if_slow, counted


@click.group(cls=Group)
def rm() -> None:
    """Deletes runs, grids, evaluations, reports or predictions, and asks before.

    The question says what depends on them.
    """


_COMPLETIONS = {
    "run": complete_run,
    "grid": complete_grid,
    "evaluation": complete_evaluation,
    "report": complete_evaluation,
}


def _complete_name(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    complete = _COMPLETIONS.get(context.info_name or "")
    return complete(context, parameter, incomplete) if complete else []


def _removal(command: Callable[..., None]) -> Callable[..., None]:
    names = click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=_complete_name)
    yes = click.option("--yes", is_flag=True, help="Don't ask.")
    dry_run = click.option("--dry-run", is_flag=True, help="Only say what would go.")
    return names(storage_option(yes(dry_run(command))))


@rm.command("run")
@_removal
def rm_run(names: Sequence[str], storage: str, yes: bool, dry_run: bool) -> None:
    """Deletes runs with all checkpoints.

    Evaluations of them stay, with all tables; a grid that lists them trains them again when it is tuned again.
    """
    _remove("run", names, storage, yes=yes, dry_run=dry_run)


@rm.command("grid")
@_removal
@click.option("--with-runs", is_flag=True, help="Delete the runs of the grids too.")
def rm_grid(names: Sequence[str], storage: str, yes: bool, dry_run: bool, with_runs: bool) -> None:
    """Deletes grids; their runs stay without --with-runs."""
    _remove("grid", names, storage, yes=yes, dry_run=dry_run, with_runs=with_runs)


@rm.command("evaluation")
@_removal
def rm_evaluation(names: Sequence[str], storage: str, yes: bool, dry_run: bool) -> None:
    """Deletes evaluations with their reports. NAME may be the beginning of a name, or latest."""
    _remove("evaluation", names, storage, yes=yes, dry_run=dry_run)


@rm.command("report")
@_removal
def rm_report(names: Sequence[str], storage: str, yes: bool, dry_run: bool) -> None:
    """Deletes the reports of evaluations. NAME is as for rm evaluation; `mnist-ray report` makes them again."""
    _remove("report", names, storage, yes=yes, dry_run=dry_run)


@rm.command("prediction")
@_removal
def rm_prediction(names: Sequence[str], storage: str, yes: bool, dry_run: bool) -> None:
    """Deletes predictions."""
    _remove("prediction", names, storage, yes=yes, dry_run=dry_run)


def _remove(
    kind_name: str, names: Sequence[str], storage: str, *, yes: bool, dry_run: bool, with_runs: bool = False
) -> None:
    from mnist_ray.results.kinds import KINDS
    from mnist_ray.results.removal import find_doomed, remove
    from mnist_ray.storage.storage import open_storage
    from mnist_ray.text.sizes import count_text, size_text

    opened = open_storage(storage)
    with at_work_if_slow(f"looking in {opened.uri} for what goes"):
        if not dry_run:
            # A killed process may have begun to delete.
            opened.remove_leftovers()
        doomed = find_doomed(opened, KINDS[kind_name], names, with_runs=with_runs)
    for each in doomed:
        click.echo(f"{each.kind.name} {each.name}: {'; '.join((size_text(each.size), *each.notes))}")
    counts = Counter(each.kind.name for each in doomed)
    total = ", ".join(count_text(count, kind) for kind, count in counts.items())
    total += f" ({size_text(sum(each.size for each in doomed))})"
    if dry_run:
        click.echo(f"would delete {total}")
        return
    if not yes and not sys.stdin.isatty():
        raise ConfigError("rm: there is nobody to ask; delete with --yes, or look with --dry-run")
    if not yes and not click.confirm(f"delete {total} from {opened.uri}?"):
        click.echo("nothing deleted")
        return
    for each in counted(doomed, "deleted", total=len(doomed)):
        remove(opened, each)
    click.echo(f"deleted {total}")


@click.command()
@click.option(
    "--older-than",
    type=FiniteRange(min=0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="Least age of what killed writers left; less only if no job is running.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@storage_option
def prune(older_than: float, dry_run: bool, storage: str) -> None:
    """Deletes what a storage can do without, and says how many bytes that frees.

    That is all checkpoints of finished runs, with the states of their optimizers, except the best; and what killed or
    deleted writers left. Results stay what they are: runs can still be evaluated, exported and reproduced.
    """
    from mnist_ray.results.pruning import CHECKPOINTS, WASTE, find_waste
    from mnist_ray.storage.storage import open_storage
    from mnist_ray.text.sizes import size_text

    opened = open_storage(storage)
    with at_work(f"looking for what {opened.uri} can do without"):
        found = find_waste(opened, older_than_s=older_than * 3600)
    for what in WASTE:
        sizes = [waste.size for waste in found if waste.what == what]
        age = "" if what == CHECKPOINTS else f" (older than {older_than:g} h)"
        click.echo(f"{what}{age}: {len(sizes):,}, {size_text(sum(sizes))}")
    if not dry_run:
        for waste in counted(found, "deleted", total=len(found)):
            waste.remove()
    click.echo(f"{'would free' if dry_run else 'freed'} {size_text(sum(waste.size for waste in found))}")
