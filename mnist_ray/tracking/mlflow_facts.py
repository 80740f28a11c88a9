"""What MLflow is told about a run besides its settings and metrics: who made it, from which code and data."""

import getpass
import json
import os

from mlflow.entities import Dataset, DatasetInput, InputTag, SourceType
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_GIT_COMMIT,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from mnist_ray.config.names import dataset_name
from mnist_ray.config.placement import on_cluster
from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import VARIANTS
from mnist_ray.results.code_version import git_commit
from mnist_ray.results.columns import settings_row
from mnist_ray.results.lineage import command_line
from mnist_ray.results.setting_words import setting_words
from mnist_ray.storage.storage import without_secrets

# MLflow accepts no longer ones.
_DIGEST_LETTERS = 36


def origin_tags() -> dict[str, str]:
    """Returns MLflow's own tags for the user and the code: MLFLOW_TRACKING_USERNAME, or the process's user."""
    tags = {
        MLFLOW_USER: os.environ.get("MLFLOW_TRACKING_USERNAME") or _user(),
        MLFLOW_SOURCE_NAME: command_line(),
        MLFLOW_SOURCE_TYPE: SourceType.to_string(SourceType.JOB if on_cluster() else SourceType.LOCAL),
    }
    commit = git_commit()
    return tags | ({MLFLOW_GIT_COMMIT: commit} if commit else {})


def _user() -> str:
    try:
        return getpass.getuser()
    # A container's user may have no name.
    except (KeyError, OSError, ImportError):
        return "unknown"


def setting_tags(config: TrainConfig) -> dict[str, str]:
    """Returns a run's settings in words, and each that differs from its variant, such as setting.dropout, as tags."""
    variant = TrainConfig(**VARIANTS.get(config.variant, {})).model_dump(mode="json")
    differing = {
        f"setting.{name}": value if isinstance(value, str) else json.dumps(value)
        for name, value in config.model_dump(mode="json").items()
        if name != "variant" and value != variant[name]
    }
    return {"setting": setting_words(settings_row(config)), **differing}


def dataset_input(dataset: str, sha256: str, *, context: str) -> DatasetInput:
    """Returns a data set as an input of an MLflow run.

    Args:
      dataset: name of a data set, or kind:URI of the user's own.
      sha256: fingerprint of the split.
      context: what it is for: training, or the evaluated split.
    """
    name = without_secrets(dataset)
    _, colon, place = name.partition(":")
    source = {"uri": place} if colon else {"tags": {MLFLOW_SOURCE_NAME: name}}
    source_type = "code" if not colon else "s3" if place.startswith("s3://") else "local"
    facts = Dataset(
        dataset_name(name),
        sha256[:_DIGEST_LETTERS],
        source_type,
        json.dumps(source),
        profile=json.dumps({"sha256": sha256}),
    )
    return DatasetInput(facts, [InputTag(MLFLOW_DATASET_CONTEXT, context)])
