"""One option for every setting of a run, with the names, choices, default and heading that the setting declares."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from pydantic.fields import FieldInfo

from mnist_ray.cli.help import complete, option
from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.yaml_files import parse_override, parse_setting
from mnist_ray.setting import choices_of, setting_of, type_of

_METAVARS = {int: "N", float: "NUMBER"}

_Command = TypeVar("_Command", bound=Callable[..., None])


def config_options(*, without: Collection[str]) -> Callable[[_Command], _Command]:
    """Adds one option for every setting of TrainConfig; values stay text until the config checks them.

    Args:
      without: settings for which the command defines its own options.
    """

    def add(command: _Command) -> _Command:
        for name, field in reversed(TrainConfig.model_fields.items()):
            if name in without:
                continue
            command = _setting_option(name, field)(command)
        return command

    return add


def _setting_option(name: str, field: FieldInfo) -> Callable[[_Command], _Command]:
    setting, choices = setting_of(TrainConfig, name), choices_of(TrainConfig, name)
    text = f"{field.description[:1].upper()}{field.description[1:]}." if field.description else ""
    # Some descriptions say what no value means.
    if field.default is not None or "by default" not in text:
        text += f"  [default: {_text(setting.none_word if field.default is None else field.default)}]"
    if field.annotation is bool:
        flags = [f"--{_dashed(each)}/--no-{_dashed(each)}" for each in (name, *setting.other_names)]
        return option(*flags, name, group=setting.group, default=None, help=text)
    metavar = setting.metavar or (f"[{'|'.join(choices)}]" if choices else _METAVARS[type_of(TrainConfig, name)])
    names = [f"--{_dashed(each)}" for each in (name, *setting.other_names)]
    values = complete(choices or setting.known)
    return option(*names, name, group=setting.group, metavar=metavar, shell_complete=values, help=text)


def parse_settings(overrides: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings from --set and the options of config_options; an option overrides --set."""
    settings = dict(parse_override(text) for text in overrides)
    for name, value in options.items():
        if value is not None:
            settings[name] = parse_setting(name, value) if isinstance(value, str) else value
    return settings


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
