import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.config.names import check_name
from mnist_ray.config.settings import EvaluationConfig, GridConfig, TrainConfig, make_config
from mnist_ray.config.yaml_files import parse_value, yaml_text
from mnist_ray.data.augmentation import AUGMENTATIONS
from mnist_ray.data.datasets import DATASETS
from mnist_ray.errors import ConfigError
from mnist_ray.optimizers.optimizers import OPTIMIZERS, SCHEDULES
from mnist_ray.setting import settings_where

COUNTS = st.integers(1, 2**31 - 1)
SEEDS = st.integers(0, 2**63 - 1)
POSITIVE = st.floats(0, allow_infinity=False, exclude_min=True)
SHARES = st.floats(0, 1, exclude_max=True)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "dataset": st.sampled_from(["mnist", "digits", "idx:/data/ä '\""]),
        "seed": SEEDS,
        "hidden_sizes": st.lists(COUNTS, min_size=1, max_size=4),
        "dropout": SHARES,
        "batch_norm": st.booleans(),
        "optimizer": st.sampled_from(sorted(OPTIMIZERS)),
        "learning_rate": POSITIVE,
        "weight_decay": st.floats(0, allow_infinity=False),
        "schedule": st.sampled_from(sorted(SCHEDULES)),
        "warmup_epochs": st.floats(0, 5),
        "gradient_clip_norm": st.none() | POSITIVE,
        "epochs": st.integers(5, 2**31 - 1),
        # From 2 on: batch norm refuses 1.
        "global_batch_size": st.integers(2, 2**31 - 1),
        "early_stopping_patience": st.none() | COUNTS,
        "precision": st.sampled_from(["bf16", "tf32", "float32", "float64"]),
        "validation_seed": SEEDS,
    },
)


def message(settings: dict[str, object], kind: type[TrainConfig | EvaluationConfig | GridConfig] = TrainConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        make_config(kind, settings)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(SETTINGS)
def test_a_config_is_the_same_after_a_round_trip_through_json_or_yaml(settings: dict[str, object]) -> None:
    config = make_config(TrainConfig, settings)
    for content in (
        config.model_dump(),
        json.loads(config.canonical_json()),
        json.loads(config.model_dump_json()),
        parse_value(yaml_text(config.model_dump(mode="json"))),
    ):
        again = make_config(TrainConfig, content)
        assert again == config
        assert again.config_hash() == config.config_hash()


@given(SETTINGS, SETTINGS)
def test_hashes_are_equal_just_where_configs_are(first: dict[str, object], second: dict[str, object]) -> None:
    configs = make_config(TrainConfig, first), make_config(TrainConfig, second)
    assert (configs[0] == configs[1]) == (configs[0].config_hash() == configs[1].config_hash())


def test_the_canonical_json_has_sorted_keys_and_no_spaces() -> None:
    assert EvaluationConfig(dataset="mnist").canonical_json() == (
        '{"batch_size":1000,"dataset":"mnist","grid":null,"num_bins":15,"shard_size":10000,"split":"test"}'
    )


# A stored run lacks the settings that are newer than it, and its hash all that have their default: so no default may
# ever change. A new setting gets a line in LATER_DEFAULTS, and Setting(is_later=True).
DEFAULTS = {
    "variant": "baseline",
    "dataset": "mnist",
    "seed": 0,
    "model": "mlp",
    "hidden_sizes": (128, 64),
    "dropout": 0.0,
    "dropout_layers": 2,
    "batch_norm": False,
    "optimizer": "adam",
    "learning_rate": 0.001,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "step_epochs": 3,
    "step_factor": 0.1,
    "gradient_clip_norm": None,
    "epochs": 5,
    "global_batch_size": 64,
    "label_smoothing": 0.0,
    "augmentation": "none",
    "early_stopping_patience": None,
    "precision": "float32",
    "train_limit": None,
    "validation_fraction": 0.1,
    "validation_seed": 0,
}
LATER_DEFAULTS: dict[str, object] = {
    "model_settings": {},
    "code_sha256": None,
    "image_size": None,
    "color": None,
    "fit": "pad",
}


def test_no_default_ever_changes() -> None:
    assert TrainConfig().model_dump() == {**DEFAULTS, **LATER_DEFAULTS}
    assert [name for name in TrainConfig.model_fields if name not in LATER_DEFAULTS] == list(DEFAULTS)
    assert settings_where(TrainConfig, lambda setting: setting.is_later) == tuple(LATER_DEFAULTS)


def test_a_config_hash_never_changes_between_versions() -> None:
    # Runs of grids are recognized by it: {} and {"dropout":0.5,"hidden_sizes":[32,16],"seed":3}.
    assert TrainConfig().config_hash() == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert TrainConfig(seed=3, hidden_sizes=(32, 16), dropout=0.5).config_hash() == (
        hashlib.sha256(b'{"dropout":0.5,"hidden_sizes":[32,16],"seed":3}').hexdigest()
    )


class Grown(TrainConfig):
    """TrainConfig with one more setting."""

    later: float | None = 0.25


@given(SETTINGS)
def test_a_setting_that_is_added_leaves_every_hash_as_it_was(settings: dict[str, object]) -> None:
    config = make_config(TrainConfig, settings)
    grown = make_config(Grown, config.model_dump(mode="json"))
    assert grown.config_hash() == config.config_hash()
    for changed in (0.5, None):
        assert grown.model_copy(update={"later": changed}).config_hash() != config.config_hash()


def test_a_default_that_is_given_counts_as_the_default() -> None:
    given = make_config(TrainConfig, {"epochs": "5", "dropout": 0, "hidden_sizes": [128, 64], "train_limit": None})
    assert given.config_hash() == TrainConfig().config_hash()
    assert make_config(TrainConfig, {"dropout": -0.0}).config_hash() == TrainConfig().config_hash()


def test_every_setting_says_what_it_is() -> None:
    for kind in (TrainConfig, EvaluationConfig):
        assert [name for name, field in kind.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"learning_rte": 1}, "unknown setting 'learning_rte'; did you mean learning_rate?"),
        ({"epochs": 0}, "epochs=0: must be greater than or equal to 1"),
        ({"epochs": -3}, "epochs=-3: must be greater than or equal to 1"),
        ({"epochs": 2.5}, "epochs=2.5: must be a valid integer, got a number with a fractional part"),
        ({"epochs": "five"}, "epochs='five': must be a valid integer, unable to parse string as an integer"),
        ({"epochs": None}, "epochs=None: must be a valid integer"),
        ({"epochs": True}, "epochs=True: must not be true or false"),
        ({"epochs": 10**12}, "epochs=1000000000000: must be less than or equal to 2147483647"),
        ({"global_batch_size": 0}, "global_batch_size=0: must be greater than or equal to 1"),
        ({"learning_rate": math.nan}, "learning_rate=nan: must be a finite number"),
        ({"learning_rate": math.inf}, "learning_rate=inf: must be a finite number"),
        ({"learning_rate": 0}, "learning_rate=0: must be greater than 0"),
        ({"learning_rate": [1]}, "learning_rate=[1]: must be a valid number"),
        ({"dropout": 1.0}, "dropout=1.0: must be less than 1"),
        ({"dropout": -0.1}, "dropout=-0.1: must be greater than or equal to 0"),
        ({"batch_norm": "maybe"}, "batch_norm='maybe': must be a valid boolean, unable to interpret input"),
        ({"seed": -1}, "seed=-1: must be greater than or equal to 0"),
        ({"seed": 2**63}, "seed=9223372036854775808: must be less than 9223372036854775808"),
        ({"validation_fraction": 1}, "validation_fraction=1: must be less than 1"),
        ({"optimizer": "adm"}, f"optimizer='adm': choose one of {', '.join(OPTIMIZERS)}; did you mean adam?"),
        ({"schedule": "x"}, f"schedule='x': choose one of {', '.join(SCHEDULES)}"),
        (
            {"augmentation": "afine"},
            f"augmentation='afine': choose one of {', '.join(AUGMENTATIONS)}; did you mean affine?",
        ),
        (
            {"model": "rnn"},
            (
                "model='rnn': must be 'mlp', 'cnn' or 'resnet', or your own: FILE.py:FUNCTION or "
                "package.module:FUNCTION; did you mean cnn?"
            ),
        ),
        ({"precision": "fp8"}, "precision='fp8': must be 'bf16', 'tf32', 'float32' or 'float64'"),
        ({"hidden_sizes": []}, "hidden_sizes=[]: needs at least one hidden layer, each of 1 to 2147483647 units"),
        (
            {"hidden_sizes": [8, 0]},
            "hidden_sizes=[8, 0]: needs at least one hidden layer, each of 1 to 2147483647 units",
        ),
        ({"hidden_sizes": 3.5}, "hidden_sizes=3.5: must be a list of whole numbers"),
        ({"hidden_sizes": True}, "hidden_sizes=True: must not be true or false"),
        ({"hidden_sizes": "8,x"}, "hidden_sizes='x': must be a valid integer, unable to parse string as an integer"),
        ({"epochs": 5, "warmup_epochs": 9}, "warmup_epochs=9.0: must not exceed epochs=5"),
        (
            {"batch_norm": True, "global_batch_size": 1},
            "global_batch_size=1: batch norm needs the variance of a batch; use at least 2",
        ),
        (
            {"dataset": "mnits"},
            (
                f"dataset='mnits': choose one of {', '.join(DATASETS)}, "
                "or idx:FOLDER, folder:URI, parquet:URI; did you mean mnist?"
            ),
        ),
    ],
)
def test_a_broken_rule_is_named_in_one_line(settings: dict[str, object], expected: str) -> None:
    assert message(settings) == f"config: {expected}"


def test_an_unknown_setting_with_no_near_one_lists_all() -> None:
    assert message({"dataset": "mnist", "zzz": 1}, EvaluationConfig) == (
        "config: unknown setting 'zzz'; choose one of dataset, split, batch_size, shard_size, num_bins, grid"
    )


def test_a_missing_setting_is_asked_for() -> None:
    assert message({}, GridConfig) == "config: axes: a value is needed"


def test_the_validation_split_is_not_evaluated_for_reports() -> None:
    assert message({"dataset": "mnist", "split": "validation"}, EvaluationConfig) == (
        "config: split='validation': must be 'train' or 'test'"
    )


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(message({"dropout": "x" * 100_000})) < 300
    assert len(message({"x" * 100_000: 1})) < 1000


def test_where_the_settings_came_from_leads_the_message() -> None:
    with pytest.raises(ConfigError, match=r"^checkpoint\.json: epochs=0: "):
        make_config(TrainConfig, {"epochs": 0}, "checkpoint.json")


def test_hidden_sizes_may_be_text_or_one_number_as_on_a_command_line() -> None:
    assert make_config(TrainConfig, {"hidden_sizes": "256, 128"}).hidden_sizes == (256, 128)
    assert make_config(TrainConfig, {"hidden_sizes": 256}).hidden_sizes == (256,)


@pytest.mark.parametrize("name", ["a", "A1", "0-b_c.d", "x" * 64])
def test_names_of_letters_digits_and_some_signs_are_kept(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "a/b", "a b", "x" * 65, "a\n", "ä", "../a"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_name(name, "run")
    assert str(caught.value) == (
        f"run={name!r}: use 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
    )
