import gzip
import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mnist_ray.data import idx
from mnist_ray.data.datasets import load_examples
from mnist_ray.data.idx import IMAGES_MAGIC, LABELS_MAGIC, read_idx
from mnist_ray.data.image_shape import MNIST_SHAPE, ImageForm
from mnist_ray.errors import DataError
from tests.support.idx_files import idx_bytes, some_images, write_pair

IMAGES = some_images(3, side=4)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def load(folder: Path, split="train"):
    return load_examples(f"idx:{folder}", split, data_dir=folder / "not-used")


def write_folder(folder: Path, *, train_labels=(0, 2, 1), test_labels=(1, 0), side=28, packed=False) -> None:
    write_pair(folder, "train", some_images(len(train_labels), side), list(train_labels), packed=packed)
    write_pair(folder, "t10k", some_images(len(test_labels), side, seed=1), list(test_labels), packed=packed)


@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_gives_back_what_was_written_raw_or_packed(tmp_path, packed):
    content = idx_bytes(IMAGES)
    path = write(tmp_path / ("a.gz" if packed else "a"), gzip.compress(content) if packed else content)
    assert np.array_equal(read_idx(path, IMAGES_MAGIC), IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short in the header; get it again"),
        (b"\x00\x00\x08", "cut short in the header; get it again"),
        (struct.pack(">4I", 0x803, 3, 4, 4)[:15], "cut short in the header; get it again"),
        (idx_bytes(IMAGES[0, 0]), "starts with 0x00000801, not with the magic number 0x00000803"),
        (
            idx_bytes(IMAGES)[:-1],
            "cut short: the header announces 3 x 4 x 4 elements, more than the file holds; get it again",
        ),
        (idx_bytes(IMAGES) + b"x", "the header announces 3 x 4 x 4 elements, but more bytes follow; get it again"),
        (
            struct.pack(">4I", 0x803, 0, 28, 28),
            "the header announces 0 x 28 x 28 elements, an empty set; at least one example is needed",
        ),
        (
            struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1),
            f"the header announces {' x '.join(['4294967295'] * 3)} elements, more than the 8 GiB a split may have",
        ),
    ],
)
def test_a_damaged_idx_file_is_named_with_what_is_wrong(tmp_path, content, message):
    path = write(tmp_path / "images", content)
    with pytest.raises(DataError) as error:
        read_idx(path, IMAGES_MAGIC)
    assert str(error.value) == f"{path}: {message}"


def test_a_packed_file_with_a_wrong_checksum_is_refused(tmp_path):
    packed = bytearray(gzip.compress(idx_bytes(IMAGES)))
    packed[-8] ^= 1  # the CRC-32 stands before the last four bytes
    path = write(tmp_path / "images.gz", packed)
    with pytest.raises(DataError, match=r"images\.gz: damaged \.gz file \(CRC check failed"):
        read_idx(path, IMAGES_MAGIC)


@pytest.mark.parametrize("kept", [0, 5, 12, 40, -9, -1])
def test_a_packed_file_that_is_cut_short_is_refused(tmp_path, kept):
    path = write(tmp_path / "images.gz", gzip.compress(idx_bytes(IMAGES))[:kept])
    with pytest.raises(DataError, match=r"images\.gz: (damaged \.gz file|cut short)"):
        read_idx(path, IMAGES_MAGIC)


def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_announces(tmp_path, monkeypatch):
    unpacked = []
    original = gzip.GzipFile.read

    def counting(self, size=-1):
        chunk = original(self, size)
        unpacked.append(len(chunk))
        return chunk

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    path = write(tmp_path / "labels.gz", gzip.compress(idx_bytes(np.zeros(5, np.uint8)) + bytes(50_000_000)))
    with pytest.raises(DataError, match="but more bytes follow"):
        read_idx(path, LABELS_MAGIC)
    assert sum(unpacked) == 8 + 5 + 1


def test_a_packed_file_too_small_for_its_header_is_refused_before_it_is_unpacked(tmp_path):
    path = write(tmp_path / "labels.gz", gzip.compress(struct.pack(">2I", 0x801, 1_000_000) + bytes(100)))
    with pytest.raises(DataError, match="announces 1000000 elements, more than the file holds"):
        read_idx(path, LABELS_MAGIC)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone: cannot be read \(No such file or directory\)"):
        read_idx(tmp_path / "gone", LABELS_MAGIC)


@given(data=st.data(), packed=st.booleans())
def test_a_mutated_file_gives_a_data_error_or_an_array_of_the_announced_shape(tmp_path_factory, data, packed):
    content = idx_bytes(IMAGES)
    original = bytearray(gzip.compress(content, mtime=0) if packed else content)
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(0, 3), label="changes")):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    mutated = mutated[: data.draw(st.integers(0, len(mutated)), label="kept")]
    path = write(tmp_path_factory.mktemp("mutated") / ("a.gz" if packed else "a"), mutated)
    try:
        array = read_idx(path, IMAGES_MAGIC)
    except DataError as error:
        array, message = None, str(error)
    if mutated == original:
        assert np.array_equal(array, IMAGES)
    elif array is None:
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
    else:
        # A change of a pixel, or of what gzip's header says about the file's name and time.
        assert idx_bytes(array) == (gzip.decompress(mutated) if packed else mutated)


@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_folder_gives_both_splits_with_the_classes_of_the_training_labels(tmp_path, packed):
    write_folder(tmp_path, packed=packed)
    train, test = load(tmp_path), load(tmp_path, "test")
    assert torch.equal(train.images, torch.from_numpy(some_images(3)).reshape(3, 1, 28, 28))
    assert train.images.dtype == torch.uint8
    assert train.labels.dtype == torch.int64
    assert train.labels.tolist() == [0, 2, 1]
    assert (len(train), len(test)) == (3, 2)
    assert train.class_names == test.class_names == ("0", "1", "2")
    assert train.conversion is None


def test_the_other_usual_spelling_of_the_names_is_found(tmp_path):
    write_folder(tmp_path)
    for path in tmp_path.iterdir():
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert load(tmp_path).labels.tolist() == [0, 2, 1]


def test_the_fingerprint_covers_images_labels_names_and_shapes_but_not_the_packing(tmp_path):
    write_folder(tmp_path / "raw")
    write_folder(tmp_path / "packed", packed=True)
    header = {"class_names": ["0", "1", "2"], "images": [3, 1, 28, 28], "labels": [3]}
    expected = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + b"\n")
    expected.update(some_images(3).tobytes() + struct.pack("<3q", 0, 2, 1))
    assert load(tmp_path / "raw").fingerprint == expected.hexdigest()
    assert load(tmp_path / "packed").fingerprint == expected.hexdigest()


@pytest.mark.parametrize("train_labels", [(0, 1, 2), (0, 2, 1, 1), (0, 3, 1)])
def test_other_content_has_another_fingerprint(tmp_path, train_labels):
    write_folder(tmp_path / "a")
    write_folder(tmp_path / "b", train_labels=train_labels)
    assert load(tmp_path / "a").fingerprint != load(tmp_path / "b").fingerprint


def test_images_of_another_size_are_resized_and_it_is_said(tmp_path):
    write_folder(tmp_path, side=32)
    assert load(tmp_path).images.shape == (3, 1, 32, 32)
    train = load_examples(f"idx:{tmp_path}", "train", data_dir=tmp_path, options=ImageForm(MNIST_SHAPE).options)
    expected = Image.fromarray(some_images(3, side=32)[1]).resize((28, 28), Image.Resampling.BILINEAR)
    assert np.array_equal(train.images[1, 0].numpy(), np.asarray(expected))
    assert train.conversion == "3 images of 32x32 grey -> 28x28 grey"


def test_as_many_labels_as_images_are_needed(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(2, np.uint8)))
    with pytest.raises(DataError, match="has 3 images but 2 labels"):
        load(tmp_path)


def test_a_test_label_beyond_the_training_labels_is_refused(tmp_path):
    write_folder(tmp_path, test_labels=(1, 7))
    with pytest.raises(DataError, match="the label 7 of example 1 is outside the 3 classes 0 to 2"):
        load(tmp_path, "test")


def test_a_missing_file_of_an_idx_folder_is_named_with_all_that_are_needed(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as error:
        load(tmp_path, "test")
    assert str(error.value) == (
        f"dataset=idx:{tmp_path}: has no t10k-labels-idx1-ubyte[.gz]; the folder needs the files"
        " train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte,"
        " raw or .gz"
    )


def test_a_set_larger_than_a_split_may_be_is_refused_from_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "MAX_CONTENT_BYTES", 47)
    path = write(tmp_path / "images", idx_bytes(IMAGES))
    with pytest.raises(DataError, match="3 x 4 x 4 elements, more than"):
        read_idx(path, IMAGES_MAGIC)


def test_classes_txt_names_the_classes_of_both_splits(tmp_path):
    write_folder(tmp_path)
    numbered = load(tmp_path)
    (tmp_path / "classes.txt").write_bytes("\ufeffnull\r\neins\r\n zwei \r\n\r\n".encode())
    for split in ("train", "test"):
        assert load(tmp_path, split).class_names == ("null", "eins", "zwei")
    assert load(tmp_path).fingerprint != numbered.fingerprint
    (tmp_path / "classes.txt").write_text("0\n1\n2")
    assert load(tmp_path).fingerprint == numbered.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb", "has 2 names, the training labels are 0 to 2; it needs a line for each of them"),
        (b"a\nb\nc\nd\n", "has 4 names, the training labels are 0 to 2"),
        (b"", "has 0 names"),
        (b"a\n\nc", "the name of class 1 is empty or holds control characters; change line 2"),
        (b"a\nb\nc\x1b[31m", "the name of class 2 is empty or holds control characters; change line 3"),
        (b"a\nb\na", "classes 0 and 2 have the same name 'a'"),
        (b"a\nb\x0b\nc", "the name of class 1 is empty or holds control characters"),
        (b"a\nb\nc\xff", "is not UTF-8 text; save it as such"),
    ],
)
def test_a_wrong_classes_txt_is_refused(tmp_path, content, message):
    write_folder(tmp_path)
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/classes.txt: {message}")):
        load(tmp_path)


def test_a_classes_txt_that_is_no_file_is_not_taken_for_none(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "classes.txt").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"classes\.txt: a link that leads nowhere; mend or remove it"):
        load(tmp_path)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.txt").mkdir()
    with pytest.raises(DataError, match=r"classes\.txt: can't be read: Is a directory"):
        load(tmp_path)
