import gc
import gzip
import hashlib
import io
import resource
import signal
import threading
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_ray.data import downloads
from mnist_ray.data.datasets import DATASETS, load_examples
from mnist_ray.errors import DataError
from tests.support.idx_files import idx_bytes, some_images, write_pair
from tests.support.mirror import Mirror, serve

NAMES = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]


@pytest.fixture
def mirror(monkeypatch):
    """An empty server that torchvision takes for the mirror of MNIST and its siblings."""
    from torchvision import datasets

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve(Mirror()) as server:
        for kind in (datasets.MNIST, datasets.KMNIST):
            monkeypatch.setattr(kind, "mirrors", [server.url])
        yield server


@pytest.fixture
def mnist_mirror(mirror, mnist_dir):
    """The same with the real files, whose checksums torchvision knows."""
    mirror.files = {name: (mnist_dir / name).read_bytes() for name in NAMES}
    return mirror


def everything_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def failed_download(data_dir: Path, kind: type[BaseException] = DataError) -> str:
    with warnings.catch_warnings():
        # torchvision leaves a failed answer's socket to the collector, which must not blame a later test.
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(kind) as error:
            load_examples("mnist", "train", data_dir=data_dir)
        message = str(error.value)
        del error
        gc.collect()
    assert everything_in(data_dir) == []
    assert "\n" not in message
    return message


def test_the_real_mnist_files_are_read_as_they_are(mnist_dir):
    train = load_examples("mnist", "train", data_dir=mnist_dir, download=False)
    test = load_examples("mnist", "test", data_dir=mnist_dir, download=False)
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.images.sum(dtype=torch.int64).item() / (60_000 * 784 * 255) == pytest.approx(0.1307, abs=5e-5)
    assert train.conversion is None


def test_a_whole_download_gives_the_same_examples_as_the_files_and_is_not_repeated(tmp_path, mnist_dir, mnist_mirror):
    downloaded = load_examples("mnist", "test", data_dir=tmp_path)
    assert downloaded.fingerprint == load_examples("mnist", "test", data_dir=mnist_dir).fingerprint
    raw = tmp_path / "MNIST" / "raw"
    assert everything_in(tmp_path) == sorted(
        [tmp_path / "MNIST", raw, *(raw / name.removesuffix(".gz") for name in NAMES)]
    )
    mnist_mirror.requested.clear()
    assert len(load_examples("mnist", "train", data_dir=tmp_path)) == 60_000
    assert mnist_mirror.requested == []


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, mnist_mirror):
    name = "train-labels-idx1-ubyte.gz"
    mnist_mirror.announced[name] = len(mnist_mirror.files[name])
    mnist_mirror.files[name] = mnist_mirror.files[name][:1000]
    assert "dataset=mnist: not in" in failed_download(tmp_path)


def test_a_corrupted_download_leaves_nothing(tmp_path, mnist_mirror):
    content = bytearray(mnist_mirror.files["train-labels-idx1-ubyte.gz"])
    content[5000] ^= 1
    mnist_mirror.files["train-labels-idx1-ubyte.gz"] = bytes(content)
    assert "File not found or corrupted" in failed_download(tmp_path)


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusing_mirror_ends_with_what_to_do_offline(tmp_path, mirror, status):
    mirror.status = status
    message = failed_download(tmp_path)
    assert f"HTTP Error {status}" in message
    assert message.endswith(
        "; put the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz,"
        f" t10k-labels-idx1-ubyte.gz into {tmp_path}, or point --data-dir or MNIST_RAY_DATA to the folder that has them"
    )


def test_a_mirror_that_is_not_there_is_an_error_with_exit_code_3(tmp_path, mirror, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:1/"])
    assert "Connection refused" in failed_download(tmp_path)
    assert DataError.exit_code == 3


def test_a_mirror_that_says_nothing_is_given_up(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(downloads, "DOWNLOAD_TIMEOUT_S", 0.3)
    released = threading.Event()
    mirror.on_get = lambda _: released.wait(30)
    try:
        assert "timed out" in failed_download(tmp_path)
    finally:
        released.set()


def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path, mnist_mirror):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        assert "File too large" in failed_download(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_ctrl_c_in_a_download_leaves_nothing(tmp_path, mnist_mirror):
    def interrupt(name: str) -> None:
        if name == "t10k-images-idx3-ubyte.gz":
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            # Python raises KeyboardInterrupt in the main thread while it waits for this answer.
            time.sleep(0.2)

    mnist_mirror.on_get = interrupt
    assert failed_download(tmp_path, KeyboardInterrupt) == ""


def test_a_data_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"the download failed .*Not a directory"):
        load_examples("mnist", "train", data_dir=tmp_path / "file" / "data")


@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_files_that_are_there_are_used_and_nothing_is_written(tmp_path, place, packed):
    images = some_images(4)
    write_pair(tmp_path / place, "train", images, [3, 1, 4, 1], packed=packed)
    before = everything_in(tmp_path)
    train = load_examples("mnist", "train", data_dir=tmp_path, download=False)
    assert train.labels.tolist() == [3, 1, 4, 1]
    assert np.array_equal(train.images[:, 0].numpy(), images)
    assert everything_in(tmp_path) == before


def test_files_in_the_top_folder_are_mnist_and_never_another_set(tmp_path):
    write_pair(tmp_path, "train", some_images(1), [0])
    write_pair(tmp_path / "fashion_mnist", "train", some_images(1), [7])
    fashion = load_examples("fashion_mnist", "train", data_dir=tmp_path, download=False)
    assert fashion.labels.tolist() == [7]
    with pytest.raises(DataError) as error:
        load_examples("kmnist", "train", data_dir=tmp_path, download=False)
    assert str(error.value) == (
        f"dataset=kmnist: not in {tmp_path} and downloading is off; put the four files {', '.join(NAMES)} into"
        f" {tmp_path / 'kmnist'}, or point --data-dir or MNIST_RAY_DATA to the folder that has them in kmnist/"
    )


def test_a_named_set_has_images_of_28x28_only(tmp_path):
    write_pair(tmp_path, "train", some_images(2, side=32), [0, 1])
    with pytest.raises(DataError, match="has images of 32x32, those of mnist are 28x28"):
        load_examples("mnist", "train", data_dir=tmp_path, download=False)


def test_a_label_outside_the_classes_of_a_named_set_is_refused(tmp_path):
    write_pair(tmp_path, "train", some_images(2), [9, 10])
    with pytest.raises(DataError, match="the label 10 of example 1 is outside the 10 classes 0 to 9"):
        load_examples("mnist", "train", data_dir=tmp_path, download=False)


def test_the_class_names_are_those_of_torchvision():
    from torchvision import datasets

    assert DATASETS["fashion_mnist"].class_names == tuple(datasets.FashionMNIST.classes)
    assert DATASETS["kmnist"].class_names == tuple(datasets.KMNIST.classes)
    for split in ("balanced", "letters"):
        names = [name for name in datasets.EMNIST.classes_split_dict[split] if name != "N/A"]
        assert DATASETS[f"emnist_{split}"].class_names == tuple(names)


def packed_idx(array: np.ndarray) -> bytes:
    return gzip.compress(idx_bytes(array))


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_kmnist_is_downloaded_into_its_own_folder(tmp_path, mirror, monkeypatch):
    from torchvision import datasets

    for name, count in zip(NAMES, (3, 3, 2, 2), strict=True):
        mirror.files[name] = packed_idx(some_images(count) if "images" in name else np.arange(count, dtype=np.uint8))
    resources = [(name, md5(mirror.files[name])) for name in NAMES]
    monkeypatch.setattr(datasets.KMNIST, "resources", resources)
    assert load_examples("kmnist", "train", data_dir=tmp_path).labels.tolist() == [0, 1, 2]
    assert len(list((tmp_path / "KMNIST" / "raw").iterdir())) == 4


def test_qmnist_labels_are_the_first_of_their_columns(tmp_path, mirror, monkeypatch):
    from torchvision import datasets

    labels = np.array([[7, 4, 0, 1, 2, 3, 4, 5], [2, 4, 0, 1, 2, 300, 4, 5]], dtype=np.int32)
    images = some_images(2)
    mirror.files = {
        "qmnist-test-images-idx3-ubyte.gz": packed_idx(images),
        "qmnist-test-labels-idx2-int.gz": packed_idx(labels),
    }
    resources = [(mirror.url + name, md5(content)) for name, content in mirror.files.items()]
    monkeypatch.setattr(datasets.QMNIST, "resources", {"test": resources})
    examples = load_examples("qmnist", "test", data_dir=tmp_path)
    assert examples.labels.tolist() == [7, 2]
    assert np.array_equal(examples.images[:, 0].numpy(), images)
    assert torch.equal(examples.labels, datasets.QMNIST(tmp_path, train=False).targets[:, 0])


def emnist_archive() -> tuple[bytes, np.ndarray]:
    """A small archive of EMNIST's form, and the images in it as they are stored."""
    stored = some_images(2)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for split, labels in (("balanced", [0, 46]), ("letters", [1, 26]), ("byclass", [0, 61])):
            for part in ("train", "test"):
                prefix = f"gzip/emnist-{split}-{part}"
                archive.writestr(f"{prefix}-images-idx3-ubyte.gz", packed_idx(stored))
                archive.writestr(f"{prefix}-labels-idx1-ubyte.gz", packed_idx(np.array(labels, dtype=np.uint8)))
    return content.getvalue(), stored


def test_emnist_is_upright_counts_from_0_and_keeps_only_the_sets_on_offer(tmp_path, mirror, monkeypatch):
    from torchvision import datasets

    archive, stored = emnist_archive()
    mirror.files = {"gzip.zip": archive}
    monkeypatch.setattr(datasets.EMNIST, "url", mirror.url + "gzip.zip")
    monkeypatch.setattr(datasets.EMNIST, "md5", md5(archive))
    letters = load_examples("emnist_letters", "train", data_dir=tmp_path)
    assert letters.labels.tolist() == [0, 25]
    assert [letters.class_names[label] for label in letters.labels.tolist()] == ["a", "z"]
    assert np.array_equal(letters.images[:, 0].numpy(), stored.transpose(0, 2, 1))
    balanced = load_examples("emnist_balanced", "test", data_dir=tmp_path, download=False)
    assert [balanced.class_names[label] for label in balanced.labels.tolist()] == ["0", "t"]
    kept = {path.name.split("-")[1] for path in (tmp_path / "EMNIST" / "raw").iterdir()}
    assert kept == {"balanced", "letters"}
