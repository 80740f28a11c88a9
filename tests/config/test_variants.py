import pytest

from mnist_ray.config.variants import VARIANTS, variant_config
from mnist_ray.errors import ConfigError


def test_the_tutorials_three_variants_are_as_in_its_table() -> None:
    shared = {"model": "mlp", "optimizer": "adam", "learning_rate": 1e-3, "epochs": 5, "global_batch_size": 64}
    regularized = {"hidden_sizes": (256, 128, 64), "dropout": 0.3, "dropout_layers": 2, "weight_decay": 1e-5}
    expected: dict[str, dict[str, object]] = {
        "baseline": {"hidden_sizes": (128, 64), "dropout": 0.0, "batch_norm": False, "weight_decay": 0.0},
        "dropout": {**regularized, "batch_norm": False},
        "dropout_batchnorm": {**regularized, "batch_norm": True},
    }
    for name, settings in expected.items():
        settings.update(shared)
        assert variant_config(name).model_dump(include=set(settings)) == settings


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_valid_config_that_knows_its_name(name: str) -> None:
    assert variant_config(name).variant == name


def test_settings_change_a_variant_and_leave_the_preset_alone() -> None:
    assert variant_config("dropout", {"dropout": 0.5, "seed": 3}).dropout == 0.5
    assert variant_config("dropout").dropout == 0.3


def test_the_variant_asked_for_wins_over_one_in_the_settings() -> None:
    assert variant_config("dropout", {"variant": "baseline"}).variant == "dropout"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("batchnorm", "; did you mean dropout_batchnorm?"),
        ("x", ""),
    ],
)
def test_an_unknown_variant_is_refused_with_the_nearest(name: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        variant_config(name)
    assert str(caught.value) == f"variant={name!r}: choose one of {', '.join(VARIANTS)}{advice}"
    assert caught.value.exit_code == 2
