"""The facts that stand beside a setting: each list that they replace, spelt out."""

from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from mnist_ray.config.settings import DATA_SETTINGS, STACK_SETTINGS, EvaluationConfig, TrainConfig, make_config
from mnist_ray.errors import ConfigError
from mnist_ray.optimizers.optimizers import OptimizerConfig
from mnist_ray.setting import Setting, one_of, setting_of, settings_where


class Sample(BaseModel):
    plain: int = 1
    own: Annotated[float | None, Setting(is_per_run=True)] = Field(None, gt=0)
    either: Annotated[str, one_of({"left": 1, "right": 2}), Setting(column="side")] = "left"


def test_a_setting_without_facts_is_shared_by_a_stack_and_shown_nowhere() -> None:
    assert setting_of(Sample, "plain") == Setting()
    assert settings_where(Sample, lambda setting: not setting.is_per_run) == ("plain", "either")
    assert settings_where(Sample, lambda setting: setting.is_on_page) == ()


def test_facts_stand_beside_limits_and_rules() -> None:
    assert setting_of(Sample, "own") == Setting(is_per_run=True)
    assert setting_of(Sample, "either") == Setting(column="side")
    with pytest.raises(ValueError, match=r"choose one of left, right; did you mean right\?"):
        Sample(either="rigth")


def test_an_inherited_setting_keeps_its_facts() -> None:
    for name in OptimizerConfig.model_fields:
        assert setting_of(TrainConfig, name) == setting_of(OptimizerConfig, name)


def test_the_facts_about_the_settings_of_training() -> None:
    assert DATA_SETTINGS == (
        "dataset", "train_limit", "validation_fraction", "validation_seed", "image_size", "color", "fit",
    )  # fmt: skip
    assert settings_where(TrainConfig, lambda setting: setting.is_on_page) == (
        "hidden_sizes", "dropout", "batch_norm", "weight_decay", "label_smoothing", "augmentation", "image_size",
        "color", "fit",
    )  # fmt: skip
    assert STACK_SETTINGS == (
        "dataset", "model", "hidden_sizes", "dropout_layers", "batch_norm", "model_settings", "code_sha256",
        "optimizer", "momentum", "epochs", "global_batch_size", "augmentation", "precision", "train_limit",
        "validation_fraction", "validation_seed", "image_size", "color", "fit",
    )  # fmt: skip


@pytest.mark.parametrize("kind", [TrainConfig, EvaluationConfig])
def test_a_message_about_a_data_set_hides_the_credentials_in_its_uri(
    kind: type[TrainConfig | EvaluationConfig],
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(kind, {"dataset": "folder:s3://key:secret@bucket/x"})
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="dataset='mnits'"):
        make_config(kind, {"dataset": "mnits"})
