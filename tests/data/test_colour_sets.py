"""CIFAR-10, CIFAR-100 and SVHN, in small files of their formats that torchvision takes for the official ones."""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from mnist_ray.cli.main import run_command
from mnist_ray.data.datasets import DATASETS, load_examples
from mnist_ray.data.image_shape import ImageShape
from mnist_ray.errors import DataError
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing
from tests.support.mirror import Mirror, serve

CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN"}
NUM_TRAINING = {"cifar10": 100, "cifar100": 20, "svhn": 20}
TEST_SEED = {"cifar10": 5, "cifar100": 1, "svhn": 1}


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve(Mirror()) as server:
        yield server


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def cifar_files(name: str) -> dict[str, bytes]:
    """The pickles of a small CIFAR: rows of 3072 pixels, channel by channel."""
    key = "labels" if name == "cifar10" else "fine_labels"
    names = list(DATASETS[name].class_names)
    batches = {"cifar10": [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"], "cifar100": ["train", "test"]}
    files = {
        batch: {"data": pixels(20, seed).reshape(20, -1), key: [(seed + n) % len(names) for n in range(20)]}
        for seed, batch in enumerate(batches[name])
    }
    meta = ("batches.meta", "label_names") if name == "cifar10" else ("meta", "fine_label_names")
    return {batch: pickle.dumps(content) for batch, content in [*files.items(), (meta[0], {meta[1]: names})]}


def svhn_files() -> dict[str, bytes]:
    files = {}
    for seed, split in enumerate(("train", "test")):
        content = io.BytesIO()
        labels = np.array([[n % 10 + 1] for n in range(20)])
        scipy.io.savemat(content, {"X": pixels(20, seed).transpose(2, 3, 1, 0), "y": labels})
        files[f"{split}_32x32.mat"] = content.getvalue()
    return files


def official(monkeypatch: pytest.MonkeyPatch, mirror: Mirror, name: str) -> dict[str, bytes]:
    """Puts a set on the mirror in the place of the official one; returns its files by their paths."""
    from torchvision import datasets

    kind: Any = getattr(datasets, CLASSES[name])
    if name == "svhn":
        mirror.files = svhn_files()
        splits = {file.split("_")[0]: [mirror.url + file, file, md5(some)] for file, some in mirror.files.items()}
        monkeypatch.setattr(kind, "split_list", splits)
        return dict(mirror.files)
    files = cifar_files(name)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for file, content in files.items():
            entry = tarfile.TarInfo(f"{kind.base_folder}/{file}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(kind, attribute, [[file, md5(files[file])] for file, _ in getattr(kind, attribute)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(files[kind.meta["filename"]])})
    monkeypatch.setattr(kind, "url", mirror.url + kind.filename)
    monkeypatch.setattr(kind, "tgz_md5", md5(archive.getvalue()))
    mirror.files = {kind.filename: archive.getvalue()}
    return {f"{kind.base_folder}/{file}": content for file, content in files.items()}


@pytest.mark.parametrize("name", CLASSES)
def test_a_set_is_downloaded_once_into_its_own_folder(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    official(monkeypatch, mirror, name)
    train, test = load_examples(name, "train", data_dir=tmp_path), load_examples(name, "test", data_dir=tmp_path)
    assert (len(train), len(test)) == (NUM_TRAINING[name], 20)
    assert np.array_equal(train.images[:20].numpy(), pixels(20, 0))
    assert np.array_equal(test.images.numpy(), pixels(20, TEST_SEED[name]))
    assert train.image_shape == DATASETS[name].image_shape == ImageShape(3, 32, 32)
    assert set(mirror.requested) == set(mirror.files)
    assert [path.name for path in tmp_path.iterdir()] == [CLASSES[name]]
    mirror.requested.clear()
    assert load_examples(name, "train", data_dir=tmp_path).fingerprint == train.fingerprint
    assert mirror.requested == []


def test_labels_of_svhn_are_the_digits(tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    official(monkeypatch, mirror, "svhn")
    labels = load_examples("svhn", "train", data_dir=tmp_path).labels.tolist()
    assert labels == [*range(1, 10), 0] * 2


def test_labels_of_cifar100_are_the_fine_ones_and_have_their_names(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    official(monkeypatch, mirror, "cifar100")
    test = load_examples("cifar100", "test", data_dir=tmp_path)
    assert test.labels.tolist() == list(range(1, 21))
    assert test.class_names[1] == "aquarium_fish"
    assert len(set(test.class_names)) == 100
    assert list(test.class_names) == sorted(test.class_names)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("place", ["", "own"])
def test_files_that_are_there_are_used_and_nothing_is_downloaded(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    for path, content in official(monkeypatch, mirror, name).items():
        file = tmp_path / (name if place else "") / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    assert len(load_examples(name, "train", data_dir=tmp_path, download=False)) == NUM_TRAINING[name]
    assert sorted(tmp_path.rglob("*")) == before
    assert mirror.requested == []


def test_an_archive_that_is_there_is_unpacked_and_nothing_is_downloaded(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    official(monkeypatch, mirror, "cifar10")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(mirror.files["cifar-10-python.tar.gz"])
    assert len(load_examples("cifar10", "test", data_dir=tmp_path)) == 20
    assert mirror.requested == []


def test_a_file_that_is_not_the_official_one_is_refused_and_never_unpickled(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    files = official(monkeypatch, mirror, "cifar10")
    for path, content in {**files, "cifar-10-batches-py/test_batch": pickle.dumps(Evil())}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    with pytest.raises(DataError, match="cifar-10-batches-py: its files are not the official ones of cifar10"):
        load_examples("cifar10", "test", data_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "files"), [("cifar10", "cifar-10-python.tar.gz"), ("svhn", "train_32x32.mat and test")]
)
def test_a_set_that_cannot_be_downloaded_says_which_files_to_put_where(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, name: str, files: str
) -> None:
    official(monkeypatch, mirror, name)
    mirror.status = 404
    with pytest.raises(DataError, match=f"dataset={name}: not in .* the download failed .*put {files}"):
        load_examples(name, "train", data_dir=tmp_path)
    with pytest.raises(DataError, match=f"downloading is off; put {files}"):
        load_examples(name, "train", data_dir=tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []


def test_a_set_trains_and_evaluates_and_another_shape_is_refused(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    official(monkeypatch, mirror, "svhn")
    places = ["--storage", str(tmp_path / "s"), "--data-dir", str(tmp_path)]
    train = ["train", "--dataset", "svhn", "--epochs", "1", "--augmentation", "crop_flip", "--name", "a", *places]
    assert run_command(train) == 0
    checkpoint = RunFolder(open_storage(str(tmp_path / "s")), "a").best()
    assert checkpoint.image_shape == (3, 32, 32)
    for values in checkpoint.normalization:
        assert isinstance(values, tuple)
        assert len(values) == 3
    assert run_command(["evaluate", "--run", "a", *places]) == 0
    # The digits have the same classes.
    capsys.readouterr()
    assert run_command(["evaluate", "--run", "a", "--dataset", "digits", *places]) == 3
    assert without_doing(capsys.readouterr().err) == (
        "mnist-ray: error: run 'a': takes images of 32x32 RGB, those of dataset='digits' are 28x28 grey\n"
    )
    for setting in ("--image-size=16", "--color=grey"):
        assert run_command([*train, setting]) == 2
        assert "is for your own images, those of svhn are 32x32 RGB; leave it out" in capsys.readouterr().err
