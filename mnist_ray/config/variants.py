"""The named presets: a variant holds the settings that differ from TrainConfig's defaults."""

from collections.abc import Mapping
from typing import Any

from mnist_ray.config.own_code import with_code_hash
from mnist_ray.config.own_settings import flat, nested
from mnist_ray.config.settings import TrainConfig, make_config
from mnist_ray.errors import ConfigError
from mnist_ray.text.suggestions import did_you_mean

_REGULARIZED: dict[str, Any] = {"hidden_sizes": (256, 128, 64), "dropout": 0.3, "weight_decay": 1e-5}
# Batch norm, a one-epoch warm-up to a high peak and a cosine to zero.
_WARM_COSINE: dict[str, Any] = {
    "batch_norm": True,
    "learning_rate": 3e-3,
    "schedule": "cosine",
    "warmup_epochs": 1.0,
    "epochs": 10,
    "global_batch_size": 128,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"hidden_sizes": (128, 64)},
    "dropout": _REGULARIZED,
    "dropout_batchnorm": {**_REGULARIZED, "batch_norm": True},
    # With affine and elastic distortions (Simard et al. 2003), the same network reaches 99 % in ten epochs.
    "tuned": {
        "hidden_sizes": (256, 128, 64),
        **_WARM_COSINE,
        "augmentation": "affine_elastic",
    },
    "cnn": {
        "model": "cnn",
        "hidden_sizes": (32, 64),
        **_WARM_COSINE,
        "dropout": 0.3,
        "augmentation": "affine",
    },
    # 0.31 million weights, for images of 28 to 64 pixels.
    "resnet": {
        "model": "resnet",
        "hidden_sizes": (32, 64, 128),
        **_WARM_COSINE,
        "augmentation": "affine",
    },
}


def variant_config(variant: str, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """Returns a variant's config with some settings changed, and with the SHA-256 of given code if it needs code.

    Args:
      settings: setting -> value; model_settings.width is an argument of the user's own network.

    Raises:
      ConfigError: the variant is unknown, a setting breaks a rule, or the network's code is not given.
      CheckpointError: the settings name another SHA-256 of the code.
    """
    # A config file may hold a list here, which a dict can't look up.
    if variant not in tuple(VARIANTS):
        known = f"choose one of {', '.join(VARIANTS)}{did_you_mean(str(variant), VARIANTS)}"
        raise ConfigError(f"variant={variant!r}: {known}")
    chosen = nested(flat({**VARIANTS[variant], **(settings or {}), "variant": variant}))
    return with_code_hash(make_config(TrainConfig, chosen))
