"""Reads and writes settings as YAML 1.2, in a file or as one value on the command line."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from mnist_ray.config.settings import TrainConfig, short
from mnist_ray.errors import ConfigError
from mnist_ray.setting import type_of

MAX_CONFIG_BYTES = 1 << 20

# The parser raises more than its own errors, for scalars like 2026-13-45 or !!bool maybe and for deep nesting.
_YAML_ERRORS = (YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


class _NoAliases(Composer):
    def compose_node(self, parent: Any, index: Any) -> Any:
        # A few lines of nested aliases expand to billions of values.
        if self.parser.check_event(AliasEvent):
            line = self.parser.peek_event().start_mark.line + 1
            raise ConfigError(f"line {line}: aliases (*name) are not supported")
        return super().compose_node(parent, index)


class _DistinctKeys(SafeConstructor):
    def check_mapping_key(self, _: Any, key_node: Any, mapping: Any, key: Any, __: Any) -> bool:
        if key in mapping:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: the key {short(key)} occurs twice")
        return True


def _load(text: str | bytes) -> Any:
    parser = YAML(typ="safe", pure=True)
    parser.Composer, parser.Constructor = _NoAliases, _DistinctKeys
    return parser.load(text)


def read_yaml(path: Path, option: str = "--config") -> dict[str, Any]:
    """Reads the YAML config file that an option named: one mapping of setting names to values.

    Raises:
      ConfigError: the file is missing, unreadable, not YAML, over 1 MiB, has a duplicate key, or is not a mapping.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{option} {str(path)!r}: {error.strerror}") from None
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{option} {str(path)!r}: larger than {MAX_CONFIG_BYTES} bytes, too large for a config")
    try:
        content = _load(text)
    except ConfigError as error:
        raise ConfigError(f"{option} {str(path)!r}: {error}") from None
    except _YAML_ERRORS as error:
        raise ConfigError(f"{option} {str(path)!r}: not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{option} {str(path)!r}: needs one mapping of setting names to values")
    return content


def parse_override(text: str) -> tuple[str, Any]:
    """Splits KEY=VALUE and reads the value; see parse_setting.

    Raises:
      ConfigError: no '=' or no key.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {short(text)}: write it as KEY=VALUE")
    return key.strip(), parse_setting(key.strip(), value)


def parse_setting(name: str, text: str) -> Any:
    """Returns a setting's value as parse_value does, or several values, separated by commas, as a list.

    A text setting's value stays as it is: YAML reads the size 0x40 as 64, and cuts a folder's name at ' #'. Commas
    belong to the value in a list of sizes, in a place such as folder:a,b, and within quotes.
    """
    value = parse_value(text)
    if name not in TrainConfig.model_fields or text.lstrip()[:1] in ("'", '"'):
        return value
    kind = type_of(TrainConfig, name)
    if kind is str and not isinstance(value, list) and (value is not None or not text.strip()):
        value = text
    is_one = not isinstance(value, str) or "," not in value or ":" in value or kind not in (str, int, float, bool)
    return value if is_one else [parse_setting(name, part.strip()) for part in value.removesuffix(",").split(",")]


def parse_value(text: str) -> Any:
    """Reads one setting's text as YAML, so that 1e-3, true, null and [256, 128] have their YAML meaning.

    Text that isn't YAML stays text.
    """
    try:
        return _load(text)
    except (ConfigError, *_YAML_ERRORS):
        return text


def yaml_text(settings: Mapping[str, Any]) -> str:
    """Returns settings as YAML, sorted by name, one per line."""
    writer = YAML(typ="safe", pure=True)
    # Never fold a value: in a model card, a folded line of backticks would end the code block.
    writer.default_flow_style, writer.width = False, 1 << 30
    text = io.StringIO()
    writer.dump(dict(settings), text)
    return text.getvalue()
