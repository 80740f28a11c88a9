"""Facts about a setting, kept in the annotation of its config field.

`dropout: Annotated[float, Setting(is_per_run=True)] = Field(0.0, ...)`
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel

from mnist_ray.text.suggestions import did_you_mean


@dataclass(frozen=True)
class Setting:
    """Facts about a setting besides its type, limits and description.

    Attributes:
      is_per_run: whether the runs of one stack may differ in it; False if shapes, data or steps depend on it.
      is_of_data: whether a run's training or validation examples depend on it.
      is_on_page: whether a report's page shows it next to the accuracies, where runs differ in it.
      may_hold_credentials: whether messages must hide its value.
      word: its short name in the names of settings; the setting's name by default.
      short: its word in the default names of runs, which have few letters; `word`, or the setting's name, by default.
      none_word: what no value means, in the names of settings.
      column: name of its column in the tables; the setting's name by default.
      is_later: whether tables of this schema version were written before it existed; their runs have its default.
      group: heading of its option in the help.
      usual_names: what other programs call it.
      known: values that a shell completes, where others are possible.
      metavar: its value in the help, where neither its type nor its choices say it.
    """

    is_per_run: bool = False
    is_of_data: bool = False
    is_on_page: bool = False
    may_hold_credentials: bool = False
    word: str | None = None
    short: str | None = None
    none_word: str = "none"
    column: str | None = None
    is_later: bool = False
    group: str = "Training"
    usual_names: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    metavar: str | None = None

    @property
    def other_names(self) -> tuple[str, ...]:
        """Names that its option has too, and by which it is suggested."""
        return tuple(dict.fromkeys([*([self.word] if self.word else []), *self.usual_names]))


def setting_of(kind: type[BaseModel], name: str) -> Setting:
    """Returns the facts about one setting of a config."""
    facts = (fact for fact in kind.model_fields[name].metadata if isinstance(fact, Setting))
    return next(facts, Setting())


def settings_where(kind: type[BaseModel], is_so: Callable[[Setting], bool]) -> tuple[str, ...]:
    """Returns the names of a config's settings that satisfy a predicate, in the config's order."""
    return tuple(name for name in kind.model_fields if is_so(setting_of(kind, name)))


@dataclass(frozen=True)
class _OneOf:
    choices: Mapping[str, object]

    def __call__(self, value: str) -> str:
        if value not in self.choices:
            raise ValueError(f"choose one of {', '.join(self.choices)}{did_you_mean(value, self.choices)}")
        return value


def one_of(choices: Mapping[str, object]) -> AfterValidator:
    """Returns the rule that a setting must be a key of a registry, for use in its annotation."""
    return AfterValidator(_OneOf(choices))


def choices_of(kind: type[BaseModel], name: str) -> tuple[str, ...]:
    """Returns the values that a setting of a config may have; none if they can't be listed."""
    field = kind.model_fields[name]
    for fact in field.metadata:
        if isinstance(fact, AfterValidator) and isinstance(fact.func, _OneOf):
            return tuple(fact.func.choices)
    return tuple(
        value for type_ in _types(field.annotation) if get_origin(type_) is Literal for value in get_args(type_)
    )


def type_of(kind: type[BaseModel], name: str) -> Any:
    """Returns the type of a setting's values besides None, such as float or tuple[int, ...]; str for a Literal."""
    (type_,) = _types(kind.model_fields[name].annotation)
    return str if get_origin(type_) is Literal else type_


def _types(annotation: Any) -> tuple[Any, ...]:
    parts = (
        get_args(annotation) if isinstance(annotation, UnionType) or get_origin(annotation) is Union else (annotation,)
    )
    return tuple(part for part in parts if part is not NoneType)


def usual_names(kind: type[BaseModel]) -> dict[str, str]:
    """Returns the other names of a config's settings: other name -> setting."""
    return {other: name for name in kind.model_fields for other in setting_of(kind, name).other_names}


def did_you_mean_setting(kind: type[BaseModel], name: str) -> str:
    """Returns '; did you mean X?' for the setting that an unknown name is nearest to, or else the settings' names."""
    return did_you_mean(name, kind.model_fields, usual_names(kind)) or f"; choose one of {', '.join(kind.model_fields)}"
