"""Facts about a setting, kept in the annotation of its config field.

`dropout: Annotated[float, Setting(is_per_run=True)] = Field(0.0, ...)`
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
      none_word: what no value means, in the names of settings.
      column: name of its column in the tables; the setting's name by default.
      is_later: whether tables of this schema version were written before it existed; their runs have its default.
    """

    is_per_run: bool = False
    is_of_data: bool = False
    is_on_page: bool = False
    may_hold_credentials: bool = False
    word: str | None = None
    none_word: str = "none"
    column: str | None = None
    is_later: bool = False


def setting_of(kind: type[BaseModel], name: str) -> Setting:
    """Returns the facts about one setting of a config."""
    facts = (fact for fact in kind.model_fields[name].metadata if isinstance(fact, Setting))
    return next(facts, Setting())


def settings_where(kind: type[BaseModel], is_so: Callable[[Setting], bool]) -> tuple[str, ...]:
    """Returns the names of a config's settings that satisfy a predicate, in the config's order."""
    return tuple(name for name in kind.model_fields if is_so(setting_of(kind, name)))


def one_of(choices: Mapping[str, object]) -> AfterValidator:
    """Returns the rule that a setting must be a key of a registry, for use in its annotation."""

    def check(value: str) -> str:
        if value not in choices:
            raise ValueError(f"choose one of {', '.join(choices)}{did_you_mean(value, choices)}")
        return value

    return AfterValidator(check)
