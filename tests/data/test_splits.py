"""Layouts of one's own data: which rows are trained on, which are for validation and test, or why it can't be told."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.datasets import load_examples
from mnist_ray.data.splits import parts_of_files, words_in
from mnist_ray.errors import DataError
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import prepare_data

CPU = torch.device("cpu")


def image_of(seed: str) -> np.ndarray:
    return np.random.default_rng(list(seed.encode())).integers(0, 256, (28, 28), dtype=np.uint8)


def hashes(images: Iterable[np.ndarray] | torch.Tensor) -> set[str]:
    return {hashlib.sha256(np.asarray(image).tobytes()).hexdigest() for image in images}


def write_folder(root: Path, names: Iterable[str]) -> None:
    """Writes an image of its own for each name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_of(name)).save(root / name)


def write_parquet(root: Path, names: Iterable[str]) -> None:
    """Writes a file of four rows and two classes for each name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        images = [image_of(f"{name}{row}").reshape(784) for row in range(4)]
        pq.write_table(pa.table({"image": images, "label": [0, 1, 0, 1]}), root / name)


def trained(dataset: str) -> tuple[set[str], set[str], set[str]]:
    """Hashes of the training, the validation and the test images of a run."""
    examples = load_examples(dataset, "train", data_dir=Path("unused"))
    data = prepare_data(TrainConfig(dataset=dataset, validation_fraction=0.5), examples, device=CPU)
    test = load_examples(dataset, "test", data_dir=Path("unused"))
    assert examples.found.num_test == len(test)
    assert examples.class_names == test.class_names
    return hashes(data.images), hashes(data.validation_images), hashes(test.images)


def folder_names(*folders: str, count: int = 2) -> list[str]:
    return [f"{folder}/{index}.png" for folder in folders for index in range(count)]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training/{}", "testing/{}"),
        ("Train/{}", "Test/{}"),
        ("TRAIN/{}", "TEST/{}"),
        ("data/set/train/{}", "data/set/test/{}"),
        ("seg_train/{}", "seg_test/{}"),
        ("split=train/{}", "split=test/{}"),
        ("{}/train", "{}/test"),
        ("train/{}/deeper/part", "test/{}"),
        ("training_data/train/{}", "training_data/test/{}"),
    ],
)
def test_no_test_image_of_a_folder_is_trained_on(tmp_path, train, test):
    of_train = folder_names(*(train.format(name) for name in ("cat", "dog")))
    of_test = folder_names(*(test.format(name) for name in ("cat", "dog")))
    write_folder(tmp_path, [*of_train, *of_test])
    training, validation, tested = trained(f"folder:{tmp_path}")
    assert tested == hashes(map(image_of, of_test))
    assert training | validation == hashes(map(image_of, of_train))
    examples = load_examples(f"folder:{tmp_path}", "test", data_dir=tmp_path)
    assert examples.class_names == ("cat", "dog")
    assert examples.found.splits == "splits by name: train, test"


@pytest.mark.parametrize("form", ["train_{}.png", "{}_Training.png"])
def test_the_names_of_image_files_can_say_the_split(tmp_path, form):
    of_train = [f"{name}/{form.format(index)}" for name in ("cat", "dog") for index in range(2)]
    of_test = [f"{name}/test {index}.png" for name in ("cat", "dog") for index in range(2)]
    write_folder(tmp_path, [*of_train, *of_test])
    training, validation, tested = trained(f"folder:{tmp_path}")
    assert tested == hashes(map(image_of, of_test))
    assert training | validation == hashes(map(image_of, of_train))


@pytest.mark.parametrize("word", ["val", "Valid", "validation", "dev"])
def test_a_validation_folder_is_the_validation_set(tmp_path, word):
    names = {part: folder_names(f"{part}/a", f"{part}/b") for part in ("train", word, "test")}
    write_folder(tmp_path, [name for part in names.values() for name in part])
    assert trained(f"folder:{tmp_path}") == tuple(
        hashes(map(image_of, names[part])) for part in ("train", word, "test")
    )


def test_train_and_val_without_test_keep_every_fifth_training_image_for_test(tmp_path):
    names, given = folder_names("train/a", "train/b", count=5), folder_names("val/a", "val/b")
    write_folder(tmp_path, [*names, *given])
    training, validation, tested = trained(f"folder:{tmp_path}")
    assert tested == hashes(map(image_of, ["train/a/4.png", "train/b/4.png"]))
    assert training == hashes(map(image_of, [name for name in names if "4" not in name]))
    assert validation == hashes(map(image_of, given))
    examples = load_examples(f"folder:{tmp_path}", "train", data_dir=tmp_path)
    assert examples.found.splits == (
        "splits by name: train, validation; every fifth training image of a class is for test"
    )


def test_a_class_may_have_the_name_of_a_split_below_the_splits(tmp_path):
    names = folder_names("train/train", "train/car", "test/train", "test/car")
    write_folder(tmp_path, names)
    _, _, tested = trained(f"folder:{tmp_path}")
    assert tested == hashes(map(image_of, names[4:]))
    assert load_examples(f"folder:{tmp_path}", "train", data_dir=tmp_path).class_names == ("car", "train")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ["train", "car"],
            "the names of train/0.png, train/1.png name a split and those of car/0.png, car/1.png don't",
        ),
        (["valid", "invalid"], "name a split and those of"),
        (["train/a", "train/b", "test/a", "part-2/b"], "those of part-2/b/0.png, part-2/b/1.png don't"),
        (["test/a", "test/b"], "no training files, only test"),
        (["val/a", "val/b", "test/a", "test/b"], "no training files, only validation and test"),
        (["train/a", "train/b", "eval/a", "eval/b"], "eval/a/0.png may belong to more than one split"),
        (["train/a/test", "train/b", "test/a", "test/b"], "train/a/test/0.png may belong to more than one split"),
        (["a/train/x", "b/train/y", "a/test/x", "b/test/y"], "the folder of its class is unclear"),
        (["train/train/a", "train/train/b", "test/test/a", "test/test/b"], "has 1 class folder (train); at least two"),
        (["train/a", "train/b", "train/val/a", "test/a", "test/b"], "the class folders val have split names"),
        (["is_train=1/a", "is_train=1/b", "is_train=0/a"], "is_train=0/a/0.png may belong to more than one split"),
        (["train/a", "train/b", "not_train/a"], "not_train/a/0.png may belong to more than one split"),
        (["mytrain/a", "mytrain/b", "mytest/a", "mytest/b"], "the names mytrain and mytest look like split names"),
        (["MNISTtrain/a", "MNISTtest/a"], "the names MNISTtrain and MNISTtest look like split names"),
        (["train", "test"], "the files test/0.png, test/1.png, train/0.png and 1 more lie outside the class folders"),
    ],
)
def test_a_folder_whose_splits_are_unclear_is_refused(tmp_path, folders, message):
    write_folder(tmp_path, folder_names(*folders))
    for split in ("train", "test"):
        with pytest.raises(DataError) as error:
            load_examples(f"folder:{tmp_path}", split, data_dir=tmp_path)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("name/train/0000.parquet", "name/test/0000.parquet"),
        ("split=train/a.parquet", "split=test/a.parquet"),
        ("Train.parquet", "Test.parquet"),
        ("x_train.parquet", "x_test.parquet"),
        ("training_data/train.parquet", "training_data/test.parquet"),
        ("train-00000-of-00002.parquet", "test-00000-of-00001.parquet"),
        ("train/a.parquet", "test/train_more.parquet"),
        ("mnistTrain.parquet", "mnistTest.parquet"),
    ],
)
def test_no_test_row_of_parquet_is_trained_on(tmp_path, train, test):
    write_parquet(tmp_path, [train, test])
    training, validation, tested = trained(f"parquet:{tmp_path}")
    assert tested == hashes(image_of(f"{test}{row}") for row in range(4))
    assert training | validation == hashes(image_of(f"{train}{row}") for row in range(4))


@pytest.mark.s3
def test_no_test_row_on_s3_is_trained_on(tmp_path, s3_uri):
    """The same rules as on a disk, where the bucket's prefix is named as a split too."""
    of_train, of_test = folder_names("Train/cat", "Train/dog"), folder_names("Test/cat", "Test/dog")
    write_folder(tmp_path, [f"train/folder/{name}" for name in [*of_train, *of_test]])
    write_parquet(tmp_path, ["train/parquet/x_train.parquet", "train/parquet/x_test.parquet"])
    storage = open_storage(s3_uri)
    for path in tmp_path.rglob("*.*"):
        storage.write_bytes(path.relative_to(tmp_path).as_posix(), path.read_bytes())
    training, validation, tested = trained(f"folder:{s3_uri}/train/folder")
    assert tested == hashes(image_of(f"train/folder/{name}") for name in of_test)
    assert training | validation == hashes(image_of(f"train/folder/{name}") for name in of_train)
    training, validation, tested = trained(f"parquet:{s3_uri}/train/parquet")
    assert tested == hashes(image_of(f"train/parquet/x_test.parquet{row}") for row in range(4))
    assert training | validation == hashes(image_of(f"train/parquet/x_train.parquet{row}") for row in range(4))


def test_validation_files_of_parquet_are_the_validation_set(tmp_path):
    names = ["train.parquet", "validation.parquet", "test.parquet"]
    write_parquet(tmp_path, names)
    expected = tuple(hashes(image_of(f"{name}{row}") for row in range(4)) for name in names)
    assert trained(f"parquet:{tmp_path}") == expected


def test_train_and_validation_files_without_test_keep_every_fifth_training_row_for_test(tmp_path):
    write_parquet(tmp_path, ["train/0.parquet", "train/1.parquet", "train/2.parquet", "val/0.parquet"])
    training, validation, tested = trained(f"parquet:{tmp_path}")
    assert tested == hashes(image_of(f"train/2.parquet{row}") for row in (0, 1))
    assert validation == hashes(image_of(f"val/0.parquet{row}") for row in range(4))
    assert len(training) == 10
    assert not training & tested


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a.parquet", "test/a.parquet", "part-0.parquet"], "those of part-0.parquet don't"),
        (["test.parquet"], "no training files, only test"),
        (["a/train/test/0.parquet", "b/train/0.parquet"], "may belong to more than one split"),
        (["train_test.parquet"], "train_test.parquet may belong to more than one split"),
        (
            ["trainfiles-0.parquet", "testfiles-0.parquet"],
            "the names trainfiles-0.parquet and testfiles-0.parquet look",
        ),
        (["is_train=True/0.parquet", "is_train=False/0.parquet"], "is_train=False/0.parquet may belong to more than"),
        (["train.parquet", "holdout.parquet"], "holdout.parquet may belong to more than one split"),
    ],
)
def test_parquet_files_whose_splits_are_unclear_are_refused(tmp_path, names, message):
    write_parquet(tmp_path, names)
    for split in ("train", "test"):
        with pytest.raises(DataError) as error:
            load_examples(f"parquet:{tmp_path}", split, data_dir=tmp_path)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("column", "values", "is_refused"),
    [
        ("split", ["train", "test"], True),
        ("Usage", ["Training", "PublicTest"], True),
        ("is_train", [True, False], True),
        ("test", [0, 1], True),
        ("split", ["train", "train"], False),
        ("split", ["upper", "lower"], False),
        ("hand", ["train", "test"], False),
    ],
)
def test_a_column_that_divides_the_rows_of_a_split_is_refused(tmp_path, column, values, is_refused):
    for row, value in enumerate(values):
        # In files of their own, so that each has one value.
        images = [image_of(f"{row} {index}").reshape(784) for index in range(10)]
        table = pa.table({"image": images, "label": [0, 1] * 5, column: [value] * 10})
        pq.write_table(table, tmp_path / f"part-{row}.parquet")
    if not is_refused:
        assert len(load_examples(f"parquet:{tmp_path}", "train", data_dir=tmp_path)) == 16
        return
    with pytest.raises(DataError, match=f"the column {column} divides the rows into splits"):
        load_examples(f"parquet:{tmp_path}", "train", data_dir=tmp_path)


def test_files_without_words_for_splits_are_pooled():
    names = ["attest/latest.parquet", "contest/trainer.parquet", "detrain.parquet", "valve/evaluations.parquet"]
    assert parts_of_files(names, "x") is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("train2017", {"train"}),
        ("XTest", {"test"}),
        ("trainset", {"train"}),
        ("test_data", {"test"}),
        ("ytrain", {"train"}),
        ("train_val", {"train", "validation"}),
        ("trainval", {"unclear"}),
        ("is_train=true", {"unclear"}),
        ("not-test", {"unclear"}),
        ("train_no_3", {"train"}),
        ("lr=0.1", set()),
        ("trains", set()),
        ("invalid", set()),
        ("data", set()),
        ("", set()),
    ],
)
def test_a_name_means_a_split_by_its_words(name, found):
    assert words_in(name) == found


def test_a_given_validation_set_is_a_part_of_the_fingerprint(tmp_path):
    write_folder(tmp_path, folder_names("train/a", "train/b", "val/a", "val/b", "test/a", "test/b"))
    given = load_examples(f"folder:{tmp_path}", "train", data_dir=tmp_path)
    assert given.num_validation == 4
    assert given.stream("x").scan()[0] == given.fingerprint
    assert replace(given, num_validation=0).stream("x").scan()[0] != given.fingerprint
