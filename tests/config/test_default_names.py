"""Default names say what was trained, and tell runs that differ apart."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.config.default_names import default_grid_name, default_run_name
from mnist_ray.config.names import check_evaluation_name, check_name, dataset_name
from mnist_ray.config.own_settings import OwnSettings
from mnist_ray.config.settings import GridConfig, TrainConfig, make_config
from mnist_ray.config.variants import VARIANTS, variant_config
from mnist_ray.data.augmentation import AUGMENTATIONS
from mnist_ray.errors import ConfigError
from mnist_ray.grids.grid import check_grid_name
from mnist_ray.optimizers.optimizers import OPTIMIZERS, SCHEDULES
from mnist_ray.setting import setting_of


@pytest.mark.parametrize(
    ("variant", "settings", "name"),
    [
        # As before, so that these runs go on.
        ("dropout", {}, "dropout-mnist-s0"),
        ("dropout_batchnorm", {"seed": 3, "dataset": "kmnist"}, "dropout_batchnorm-kmnist-s3"),
        ("dropout", {"dataset": "digits", "weight_decay": 1e-4}, "dropout-digits-wd1e-4-s0"),
        ("dropout", {"weight_decay": 1e-5, "dropout": 0.3}, "dropout-mnist-s0"),
        ("tuned", {"batch_norm": False, "augmentation": "none"}, "tuned-mnist-no-bn-no-augmentation-s0"),
        ("baseline", {"batch_norm": True, "learning_rate": 0.0015}, "baseline-mnist-bn-lr0.0015-s0"),
        ("baseline", {"hidden_sizes": [256, 128], "optimizer": "sgd"}, "baseline-mnist-hidden256x128-sgd-s0"),
        ("baseline", {"schedule": "cosine", "global_batch_size": 128}, "baseline-mnist-cosine-batch128-s0"),
        ("baseline", {"dataset": "folder:/x/photos", "image_size": 32}, "baseline-photos-size32x32-s0"),
        ("baseline", {"dataset": "folder:/x/photos", "color": "rgb", "fit": "crop"}, "baseline-photos-rgb-crop-s0"),
    ],
)
def test_a_run_is_named_after_the_settings_that_differ_from_its_variant(
    variant: str, settings: dict[str, Any], name: str
) -> None:
    assert default_run_name(variant_config(variant, settings)) == name


def test_a_name_without_room_for_the_words_has_a_hash_of_the_settings() -> None:
    settings = {"learning_rate": 0.00123456789, "label_smoothing": 0.1, "gradient_clip_norm": 1.25, "epochs": 12}
    settings |= {"weight_decay": 1e-4, "schedule": "cosine"}
    names = [
        default_run_name(variant_config("dropout", {**settings, **more, "seed": seed}))
        for more in ({}, {"momentum": 0.8})
        for seed in (0, 2**63 - 1)
    ]
    assert names[0].startswith("dropout-mnist-")
    assert [len(name) for name in names] == [25, 43, 25, 43]
    assert len({*names}) == 4


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("mnist", "mnist"),
        ("folder:/tmp/h3/phd/photos", "photos"),
        ("folder:/tmp/photos/", "photos"),
        ("folder:/tmp/photos/train", "photos-train"),
        ("folder:s3://bucket", "bucket"),
        ("folder:s3://bucket/my photos.v2", "my-photos.v2"),
        ("parquet:s3://bucket/x/scans.parquet", "scans"),
        ("parquet:/x/scans.parquet/", "scans"),
        ("idx:/data/my-digits/", "my-digits"),
        ("idx:/data/my_digits", "my_digits"),
        ("folder:file:///data/x", "x"),
        ("folder:/Bücher/数字 1", "1"),
        ("folder:/数字", "data"),
        ("folder:/", "data"),
        (f"folder:/{'long-' * 20}", "long-long-long-long-long"),
    ],
)
def test_a_data_set_is_named_after_the_last_part_of_its_place(dataset: str, name: str) -> None:
    assert dataset_name(dataset) == name
    assert check_name(default_run_name(TrainConfig(dataset=dataset))) == f"baseline-{name}-s0"
    grid = GridConfig(axes={}, ranges={}, fixed={"dataset": dataset}, seeds=(0,))
    assert check_grid_name(default_grid_name("./my grids/a.yaml", grid)) == f"a-{name}"
    assert check_evaluation_name(name)


def test_a_grid_over_data_sets_is_named_after_all() -> None:
    grid = GridConfig(axes={"dataset": ("digits", "folder:/x/photos")}, ranges={}, fixed={}, seeds=(0,))
    assert default_grid_name("variants", grid) == "variants-digits-photos"
    assert default_grid_name("variants", GridConfig(axes={}, ranges={}, fixed={}, seeds=(0,))) == "variants-mnist"
    assert check_grid_name(default_grid_name(f"{'long' * 20}.yaml", grid)) == "long" * 8


def test_an_own_network_has_a_hash_of_its_code_and_arguments() -> None:
    def name(model: str = "nets.py:make_net", code: str = "a" * 64, **settings: Any) -> str:
        return default_run_name(TrainConfig(model=model, code_sha256=code, **settings))

    def arguments(**values: Any) -> dict[str, Any]:
        return {"model_settings": OwnSettings(values)}

    assert name().startswith("make_net-mnist-")
    assert name(**arguments(width=64, rates=[0.1, 0.25])).startswith("make_net-mnist-width64-rates0.1x0.25-")
    names = [
        name(),
        name("other.py:make_net"),
        name(code="b" * 64),
        name(variant="cnn"),
        name(learning_rate=0.1),
        *(
            name(**arguments(**values))
            for values in ({"width": 64}, {"width": "64"}, {"lr": 0.1}, {"text": "é/ü" * 30})
        ),
    ]
    assert len({*map(check_name, names)}) == len(names)


def words_of_choices() -> list[str]:
    return [*OPTIMIZERS, *SCHEDULES, *AUGMENTATIONS, "mlp", "cnn", "resnet", "bf16", "tf32", "float32", "float64",
            "grey", "rgb", "pad", "crop", "stretch"]  # fmt: skip


def test_no_word_of_a_setting_can_be_taken_for_another() -> None:
    words = []
    for name in {*TrainConfig.model_fields} - {"code_sha256"}:
        setting = setting_of(TrainConfig, name)
        words.append(setting.short or setting.word or name)
    choices = [word for word in words_of_choices() if word != "none"]
    assert len({*words, *choices}) == len(words) + len(choices)
    # A number or "no-" is before or behind them.
    assert all(word.replace("_", "").isalpha() for word in words)
    assert not {"no", "e"} & {*words, *choices}


_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "variant": st.sampled_from(list(VARIANTS)),
    "seed": st.sampled_from([0, 1, 10, 2**63 - 1]),
    "hidden_sizes": st.lists(st.sampled_from([1, 12, 64, 128, 256]), min_size=1, max_size=3),
    "dropout": st.sampled_from([0, 0.1, 0.10000001, 0.3, 0.5]),
    "dropout_layers": st.integers(0, 12),
    "batch_norm": st.booleans(),
    "optimizer": st.sampled_from(list(OPTIMIZERS)),
    "learning_rate": st.sampled_from([1e-4, 1e-3, 1e-2, 0.1, 1, 0.0015, 1e-10, 1e16]),
    "momentum": st.sampled_from([0.9, 0.5, 0]),
    "weight_decay": st.sampled_from([0, 1e-5, 1e-4, 0.001]),
    "schedule": st.sampled_from(list(SCHEDULES)),
    "warmup_epochs": st.sampled_from([0, 0.5, 1]),
    "step_epochs": st.integers(1, 12),
    "step_factor": st.sampled_from([0.1, 0.5, 1]),
    "gradient_clip_norm": st.sampled_from([None, 1, 1.5]),
    "epochs": st.integers(1, 12),
    "global_batch_size": st.sampled_from([2, 64, 128, 1000]),
    "label_smoothing": st.sampled_from([0, 0.1]),
    "augmentation": st.sampled_from(list(AUGMENTATIONS)),
    "early_stopping_patience": st.sampled_from([None, 1, 11]),
    "precision": st.sampled_from(["bf16", "tf32", "float32", "float64"]),
    "train_limit": st.sampled_from([None, 1, 100]),
    "validation_fraction": st.sampled_from([0.1, 0.2]),
    "validation_seed": st.integers(0, 12),
    "model": st.sampled_from(["mlp", "cnn", "resnet"]),
    "image_size": st.sampled_from([None, 8, "8x80", "80x8"]),
    "color": st.sampled_from([None, "grey", "rgb"]),
    "fit": st.sampled_from(["pad", "crop", "stretch"]),
}
_LEFT_OUT = {"dataset", "model_settings", "code_sha256"}


def test_every_setting_is_tried() -> None:
    assert {*_VALUES} == {*TrainConfig.model_fields} - _LEFT_OUT


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    names = draw(st.lists(st.sampled_from([name for name in _VALUES if name != "variant"]), unique=True, max_size=6))
    settings = {name: draw(_VALUES[name]) for name in names}
    try:
        return variant_config(draw(_VALUES["variant"]), {"dataset": "folder:/x/photos", **settings})
    except ConfigError:
        # A rule about several settings.
        return variant_config("baseline", {"dataset": "folder:/x/photos"})


@given(st.lists(configs(), min_size=2, max_size=12))
def test_configs_have_the_same_default_name_only_if_they_are_the_same(several: list[TrainConfig]) -> None:
    names = [check_name(default_run_name(config)) for config in several]
    for config, name in zip(several, names, strict=True):
        again = make_config(TrainConfig, config.model_dump(mode="json"))
        assert default_run_name(again) == name
        assert [other == config for other in several] == [other == name for other in names]
