import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray.data.datasets import DATASETS, check_dataset, default_data_dir, load_examples

CHOICES = f"choose one of {', '.join(DATASETS)}, or idx:FOLDER, folder:URI, parquet:URI"


@pytest.mark.parametrize(
    "value",
    [*DATASETS, "idx:a/b", "idx:file:///a", "folder:/a/b", "folder:s3://bucket/a", "parquet:a.parquet"],
)
def test_a_data_set_that_can_be_meant_is_returned_as_it_is(value):
    assert check_dataset(value) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "mnits",
            f"{CHOICES}; did you mean mnist?",
        ),
        (
            "csv:a",
            CHOICES,
        ),
        ("idx:", "idx='': give a folder, or s3://bucket/prefix"),
        ("idx:s3://bucket/a", "idx='s3://bucket/a': use a local folder; folder: and parquet: read from S3"),
        (
            "folder:http://a/b",
            "folder='http://a/b': http:// is not supported; use a local path, file:///folder or s3://bucket/prefix",
        ),
    ],
)
def test_a_data_set_that_cannot_be_meant_is_refused_with_the_rule(value, message):
    with pytest.raises(ValueError) as error:
        check_dataset(value)
    assert str(error.value) == message


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(ValueError, match="no credentials in a URI") as error:
        check_dataset("parquet:s3://key:hidden@bucket/a")
    assert "hidden" not in str(error.value)


def test_loading_checks_the_name_too(tmp_path):
    with pytest.raises(ValueError, match="did you mean digits"):
        load_examples("digit", "train", data_dir=tmp_path)


def test_the_names_are_listed_without_importing_anything_heavy():
    program = (
        "import sys; from mnist_ray.data.datasets import DATASETS, check_dataset; check_dataset('folder:s3://bucket/a');"
        "heavy = {'torch', 'torchvision', 'numpy', 'pyarrow', 'PIL', 'sklearn', 'boto3', 'ray'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_named_set_says_its_classes_without_being_loaded():
    assert {name: len(dataset.class_names) for name, dataset in DATASETS.items()} == {
        "mnist": 10,
        "fashion_mnist": 10,
        "kmnist": 10,
        "qmnist": 10,
        "emnist_balanced": 47,
        "emnist_letters": 26,
        "digits": 10,
        "cifar10": 10,
        "cifar100": 100,
        "svhn": 10,
    }


def test_the_data_folder_is_the_one_that_was_chosen_or_in_the_users_cache(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("MNIST_RAY_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_data_dir() == Path("/home/somebody/.cache/mnist-ray")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_data_dir() == Path("/cache/mnist-ray")
    monkeypatch.setenv("MNIST_RAY_DATA", "/data")
    assert default_data_dir() == Path("/data")
