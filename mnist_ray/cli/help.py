"""The help of commands: options and commands under headings, and choices that a mistyped value suggests.

Click has headings for neither. The libraries that add them fit less: cloup's groups belong to one command each, while
commands share options here; click-option-group takes neighbours only; rich-click redraws every page.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from mnist_ray.text.suggestions import did_you_mean

# In this order; click's own --help is under the last.
HEADINGS = (
    "Run",
    "Grid",
    "Search and early end",
    "Data",
    "Network",
    "Optimizer",
    "Training",
    "Where it runs",
    "Output",
    "Options",
)
# Click's limit of the first column.
_MAX_COLUMN = 30

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


class _Option(click.Option):
    def __init__(self, *arguments: Any, group: str, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.group = group


def option(*names: str, group: str, **named: Any) -> Callable[[_Decorated], _Decorated]:
    """Adds an option as click.option does, with its heading in the help of a Command."""
    return click.option(*names, cls=_Option, group=group, **named)


class Command(click.Command):
    """A command whose help has its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click.Command."""
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record:
                sections[getattr(parameter, "group", HEADINGS[-1])].append(record)
        _write(formatter, sections)


class Group(click.Group):
    """A group whose help has its commands under headings, each with its whole first sentence."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._heading_of: dict[str, str] = {}

    def add_commands(self, heading: str, commands: Sequence[click.Command]) -> None:
        """Adds commands under a heading, in this order."""
        for command in commands:
            self.add_command(command)
            self._heading_of[str(command.name)] = heading

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click.Group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self._heading_of or self.list_commands(ctx):
            # Click cuts it to a line by default; the formatter wraps it.
            sentence = self.commands[name].get_short_help_str(limit=1000)
            sections.setdefault(self._heading_of.get(name, "Commands"), []).append((name, sentence))
        _write(formatter, sections)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click.Group."""
        if not ctx.resilient_parsing and args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(f"no such command {args[0]!r}{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


class Choice(click.Choice[str]):
    """A choice that suggests the nearest one for a mistyped value."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click.ParamType."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(error.message.removesuffix(".") + did_you_mean(str(value), self.choices), param, ctx)


def complete(choices: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Returns the completion of a value by the choices that begin so."""
    return lambda _context, _parameter, incomplete: [name for name in choices if name.startswith(incomplete)]


def no_such_option(error: click.NoSuchOption) -> str:
    """Returns the message about an unknown option."""
    names = [name for each in error.ctx.command.params for name in each.opts] if error.ctx else []
    return f"no such option {error.option_name!r}{did_you_mean(error.option_name, names)}"


def _write(formatter: click.HelpFormatter, sections: dict[str, list[tuple[str, str]]]) -> None:
    """Writes lists of names and descriptions with a common second column."""
    names = [name for records in sections.values() for name, _ in records]
    width = min(max(map(len, names)), _MAX_COLUMN)
    for heading, records in sections.items():
        if records:
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in records], col_max=_MAX_COLUMN)
