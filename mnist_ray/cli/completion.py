"""Shell completion: the script for a shell, and the values that it offers; imports neither torch nor ray."""

from collections.abc import Callable

import click
from click.shell_completion import get_completion_class

from mnist_ray.cli.help import Choice
from mnist_ray.config.names import EVALUATION_PATTERN
from mnist_ray.config.variants import VARIANTS
from mnist_ray.data.datasets import DATASETS, FORMATS
from mnist_ray.errors import MnistRayError
from mnist_ray.grids.grid import GRIDS as GRIDS_BY_NAME
from mnist_ray.results.paths import EVALUATIONS, GRIDS, LATEST, RUNS
from mnist_ray.storage.storage import open_storage

_VARIABLE = "_MNIST_RAY_COMPLETE"
Completion = Callable[[click.Context, click.Parameter, str], list[str]]


@click.command()
@click.argument("shell", type=Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Prints the script that completes commands, options and names in a shell.

    For bash: mnist-ray completion bash > ~/.local/share/bash-completion/completions/mnist-ray
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "mnist-ray", _VARIABLE).source())


def complete_variant(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Returns the variants that begin so."""
    return [name for name in VARIANTS if name.startswith(incomplete)]


def complete_named_grid(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Returns the named grids that begin so."""
    return [name for name in GRIDS_BY_NAME if name.startswith(incomplete)]


def complete_dataset(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Returns the data sets by name, and the prefixes of one's own, that begin so."""
    return [name for name in (*DATASETS, *(f"{kind}:" for kind in FORMATS)) if name.startswith(incomplete)]


def _names_in(folder: str) -> Completion:
    """Returns the completion by the names in a folder of the command line's storage, if it is local."""

    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        try:
            storage = open_storage(context.params.get("storage") or "results")
            names = storage.list_folders(folder) if storage.is_local else []
        except MnistRayError:
            # The shell has no place for a message; the command itself says what is wrong.
            return []
        names += [LATEST] if folder == EVALUATIONS and names else []
        # A shell takes the names apart, so only those that commands accept.
        return [name for name in names if name.startswith(incomplete) and EVALUATION_PATTERN.fullmatch(name)]

    return complete


complete_run, complete_grid, complete_evaluation = map(_names_in, (RUNS, GRIDS, EVALUATIONS))
