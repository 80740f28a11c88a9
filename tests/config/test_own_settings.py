"""The arguments of the user's own network in a config: equal by their JSON, hashable, one name for each."""

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.config.own_settings import OwnSettings, argument_of, flat, nested, setting_named
from mnist_ray.config.settings import TrainConfig, check_setting, make_config
from mnist_ray.errors import ConfigError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
NAMES = st.text("abcxyz_", min_size=1, max_size=4)


def config_of(settings: dict[str, Any], **others: Any) -> TrainConfig:
    return make_config(TrainConfig, {"model": "nets.py:make", "model_settings": settings, **others})


@given(st.dictionaries(NAMES, SCALARS | st.lists(SCALARS, max_size=3)))
def test_a_config_with_them_is_the_same_after_json_and_pickle(settings: dict[str, Any]) -> None:
    config = config_of(settings)
    again = TrainConfig.model_validate_json(config.canonical_json())
    assert again == config == pickle.loads(pickle.dumps(config))
    assert hash(again) == hash(config)
    assert again.model_settings.arguments() == settings


def test_the_order_of_the_arguments_makes_no_other_config() -> None:
    assert config_of({"a": 1, "b": [2]}).canonical_json() == config_of({"b": [2], "a": 1}).canonical_json()
    assert '"model_settings":{"a":1,"b":[2]}' in config_of({"b": (2,), "a": 1}).canonical_json()


@pytest.mark.parametrize("other", [1.0, True, "1", [1], None])
def test_values_that_python_takes_for_equal_make_other_configs(other: object) -> None:
    assert config_of({"a": 1}) != config_of({"a": other})
    assert config_of({"a": 1}).config_hash() != config_of({"a": other}).config_hash()


def test_a_function_that_changes_its_arguments_changes_no_config() -> None:
    config = config_of({"sizes": [8, 4]})
    config.model_settings.arguments()["sizes"].append(2)
    assert config == config_of({"sizes": [8, 4]})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"a": {"b": 1}}, "model_settings={'a': {'b': 1}}: a: must be a number, text, true, false, null or a list"),
        ({"a": [[1]]}, "model_settings={'a': [[1]]}: a: must be a number"),
        ({"a": float("nan")}, "model_settings={'a': nan}: a: must be a number"),
        ({"a b": 1}, "model_settings={'a b': 1}: 'a b' is no name of an argument"),
        (3, "model_settings=3: must be a mapping such as {width: 64}"),
    ],
)
def test_what_is_no_argument_is_refused(settings: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config_of(settings)
    assert str(raised.value).startswith(f"config: {expected}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"dropout": 0.3},
            (
                "dropout=0.3: only the built-in networks use it; leave it out, or the variant that sets it, and give "
                "nets.py:make its own as model_settings.dropout"
            ),
        ),
        ({"hidden_sizes": [8]}, "hidden_sizes=(8,): only the built-in networks use it"),
        ({"dropout_layers": 1}, "dropout_layers=1: only the built-in networks use it"),
        ({"batch_norm": True}, "batch_norm=True: only the built-in networks use it"),
    ],
)
def test_a_setting_of_the_built_in_networks_is_refused_for_an_own_one(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config_of({}, **settings)
    assert str(raised.value).startswith(f"config: {expected}")


def test_a_built_in_network_takes_none() -> None:
    with pytest.raises(ConfigError, match="model='mlp' takes none"):
        make_config(TrainConfig, {"model_settings": {"width": 3}})


@pytest.mark.parametrize("model", ["nets.py", ":make", "nets.py:", "rnn"])
def test_a_name_that_is_no_network_lists_those_there_are(model: str) -> None:
    with pytest.raises(ConfigError, match=r"must be 'mlp', 'cnn' or 'resnet', or your own: FILE\.py:FUNCTION or"):
        make_config(TrainConfig, {"model": model})


def test_dotted_names_replace_single_arguments() -> None:
    given_in_file = {"epochs": 3, "model_settings": {"width": 8, "depth": 2}}
    chosen = flat({**flat(given_in_file), "model_settings.width": 16})
    assert chosen == {"epochs": 3, "model_settings.width": 16, "model_settings.depth": 2}
    assert nested(chosen) == {"epochs": 3, "model_settings": {"width": 16, "depth": 2}}
    assert [argument_of(name) for name in ("model_settings.width", "model_settings", "epochs")] == ["width", None, None]
    assert setting_named("model_settings.width") == setting_named("model_settings") == "model_settings"
    assert setting_named("x.width") == "x.width"
    assert check_setting("model_settings.width", 8, "test") == 8
    with pytest.raises(ConfigError, match=r"^test: model_settings={'width': {}}: width: must be a number"):
        check_setting("model_settings.width", {}, "test")


def test_equal_settings_have_equal_hashes() -> None:
    assert OwnSettings(a=1) == OwnSettings(a=1)
    assert hash(OwnSettings(a=1)) == hash(OwnSettings(a=1))
    assert OwnSettings(a=1) != {"a": 1}
