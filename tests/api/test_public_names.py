"""The public names: which there are, how they are called, and what they cost before they are used."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import mnist_ray
from mnist_ray.api.settings import GridSettings, RunSettings
from mnist_ray.config.own_settings import OwnSettings
from mnist_ray.config.settings import TrainConfig
from mnist_ray.errors import ConfigError

ROOT = Path(mnist_ray.__file__).parent.parent
# Written by hand: a change of a line is one that people's programs notice.
PUBLIC = Path(__file__).with_name("public_names.txt")


def signature(of: Any) -> str:
    return re.sub(r"\b(?:mnist_ray|collections|typing|os|pyarrow)(?:\.\w+)*\.(?=\w)", "", str(inspect.signature(of)))


def public() -> Iterator[str]:
    """What the public names are, a line each; members of a class begin with a dot."""
    for name in mnist_ray.__all__:
        value = getattr(mnist_ray, name)
        if not inspect.isclass(value):
            yield f"{name}{signature(value)}"
            continue
        # A plain exception takes a message.
        yield name if issubclass(value, Exception) else f"{name}{signature(value)}"
        for member, given in sorted(vars(value).items()):
            if member.startswith("_"):
                continue
            read = getattr(given, "fget", None) or getattr(given, "func", None)
            if read:
                yield f"  .{member}{signature(read).removeprefix('(self)')}"
            elif inspect.isfunction(given):
                yield f"  .{member}{signature(given)}"


def test_the_public_names_and_their_signatures_are_those_of_the_list() -> None:
    assert list(public()) == PUBLIC.read_text().splitlines()
    assert mnist_ray.__all__ == sorted(mnist_ray.__all__)
    assert set(mnist_ray.__all__) <= set(dir(mnist_ray))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = mnist_ray.trian


def test_every_public_name_and_member_says_what_it_is() -> None:
    for name in mnist_ray.__all__:
        value = getattr(mnist_ray, name)
        assert value.__doc__, name
        assert not value.__doc__.startswith(f"{name}("), name
        for member, given in vars(value).items() if inspect.isclass(value) else ():
            if not member.startswith("_") and not isinstance(given, str | int | bool | tuple | None):
                assert given.__doc__, f"{name}.{member}"


def test_the_keyword_arguments_are_the_settings_of_a_config() -> None:
    # Readers give more kinds of values than a config holds.
    wider = {tuple[int, ...]: Sequence[int], OwnSettings: Mapping[str, Any]}
    fields = {name: wider.get(field.annotation, field.annotation) for name, field in TrainConfig.model_fields.items()}
    del fields["code_sha256"]
    fields["image_size"] = str | int | None
    assert RunSettings.__annotations__ == fields
    assert GridSettings.__annotations__ == {name: kind for name, kind in fields.items() if name != "seed"}
    with pytest.raises(ConfigError, match=r"unknown setting 'dropuot'; did you mean dropout\?"):
        mnist_ray.train(dropuot=0.3)  # type: ignore[call-arg]  # a misspelled name, on purpose


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import mnist_ray", {"torch", "ray", "pyarrow", "numpy", "pydantic", "click"}),
        ("from mnist_ray import MnistRayError", {"torch", "ray", "pyarrow", "numpy", "pydantic", "click"}),
        ("from mnist_ray import *", {"torch", "ray"}),
    ],
)
def test_importing_loads_nothing_heavy(code: str, unwanted: set[str]) -> None:
    script = f"{code}\nimport sys; loaded = {unwanted} & set(sys.modules); assert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
