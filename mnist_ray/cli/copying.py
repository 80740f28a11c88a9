"""The command that copies results from storage to storage: cp."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from mnist_ray.errors import ConfigError
from mnist_ray.storage.storage import check_uri, open_storage
from mnist_ray.text.doing import at_work, counted, on_terminal
from mnist_ray.text.escape import say_line
from mnist_ray.text.sizes import count_text, size_text


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--run", "runs", multiple=True, metavar="NAME", help="Copy this run; may be repeated, like the others.")
@click.option("--grid", "grids", multiple=True, metavar="NAME", help="Copy this grid with its runs.")
@click.option(
    "--evaluation",
    "evaluations",
    multiple=True,
    metavar="NAME",
    help="Copy this evaluation, with its report: its name, the beginning of its name, or latest.",
)
@click.option("--prediction", "predictions", multiple=True, metavar="NAME", help="Copy this prediction.")
@click.option("--dry-run", is_flag=True, help="Only compare, and say what would be sent.")
def cp(source: str, target: str, dry_run: bool, **wanted: Sequence[str]) -> None:
    """Copies results from the storage SRC to DST; everything by default.

    Each is a folder or s3://bucket/prefix. Every file is verified by its SHA-256, in DST too. The same command again
    sends only what is missing. What exists in DST with other content is a conflict, and stays.
    """
    here, there = open_storage(check_uri(source, "SRC")), open_storage(check_uri(target, "DST"))
    if here == there:
        raise ConfigError(f"DST={target!r}: the same storage as SRC; choose another")
    how = "to send" if dry_run else "sent"
    with at_work(f"comparing {here.uri} with {there.uri}"):
        from mnist_ray.results.copying import Selection, copy_results, select

        results = select(here, Selection(**wanted))
        if not dry_run:
            there.check()
            there.remove_leftovers()
        copied = list(_with_progress(copy_results(here, there, results, dry_run=dry_run), len(results), how))
    counts = Counter(each.kind.name for each in copied)
    names = ", ".join(count_text(count, kind) for kind, count in counts.items())
    sent = count_text(sum(each.num_files for each in copied), "file")
    click.echo(f"{names} in {there.uri}: {sent} {how} ({size_text(sum(each.num_bytes for each in copied))})")


def _with_progress(copied: Iterable[Any], total: int, how: str) -> Iterator[Any]:
    """Yields results.copying.Copied and shows a bar on a terminal, else a line for each."""
    if on_terminal():
        yield from counted(copied, f"results {how}", total=total)
        return
    for each in copied:
        sent = f"{count_text(each.num_files, 'file')} {how}, {size_text(each.num_bytes)}"
        say_line(f"{each.kind.name} {each.name}: {sent if each.num_files else 'there already'}")
        yield each
