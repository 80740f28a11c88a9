"""The options of the commands that run the user's own networks: --code and --debug."""

import functools
import os
import traceback
from collections.abc import Callable
from typing import Any

from mnist_ray.cli.help import option
from mnist_ray.config.own_code import given_code, giving
from mnist_ray.config.placement import in_job
from mnist_ray.errors import MnistRayError

_code_option = option(
    "--code",
    group="Network",
    multiple=True,
    metavar="FILE|FOLDER|PACKAGE",
    help="Code of your own network: a *.py file, a folder of them, or an installed package; may be repeated. Only code "
    "that you give here or name yourself, by --model or in a --config or --grid file, is ever run. With --address, "
    "files travel with the job.",
)
_debug_option = option(
    "--debug",
    group="Output",
    is_flag=True,
    help="Print the traceback of an error, such as one in your own network, below its line.",
)


def code_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --code and --debug; the code is given for the time of the command, which gets neither."""

    @functools.wraps(command)
    def with_code(*arguments: Any, code: tuple[str, ...], debug: bool, **named: Any) -> None:
        try:
            with giving(code):
                command(*arguments, **named)
        except MnistRayError as error:
            if debug:
                error.add_note(error.trace or "".join(traceback.format_exception(error)))
            raise

    return _code_option(_debug_option(with_code))


def code_words() -> list[str]:
    """Returns the options that give this command's code to another command."""
    # On a cluster, the code lies in the job's own folder.
    names = [code.package or (code.path.name if in_job() else os.path.relpath(code.path)) for code in given_code()]
    return [part for name in names for part in ("--code", name)]
