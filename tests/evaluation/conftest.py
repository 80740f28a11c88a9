"""A trained run for the tests of predicting, and images of its classes."""

from pathlib import Path

import numpy as np
import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.data.datasets import load_examples


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a run `a`, trained on bright digits."""
    folder = tmp_path_factory.mktemp("storage")
    train = ["train", "--dataset", "digits", "--variant", "dropout_batchnorm", "--epochs", "3", "--name", "a"]
    assert run_command([*train, "--storage", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return load_examples("digits", "test", data_dir=Path("unused")).images[:, 0].numpy()
