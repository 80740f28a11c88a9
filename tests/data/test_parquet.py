import io
import resource
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mnist_ray.data import decoded_images, parquet_file, parquet_pages
from mnist_ray.data.datasets import load_examples, stream_examples
from mnist_ray.data.image_shape import MNIST_SHAPE, ImageForm
from mnist_ray.data.parquet_pages import unpacked_sizes
from mnist_ray.data.unlabelled import find_images
from mnist_ray.errors import DataError
from tests.support.idx_files import some_images
from tests.support.warm_processes import call

PIXELS = some_images(12)


def png(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


PNGS = [png(pixels) for pixels in PIXELS]
# For large values: without a look at their content.
QUICKLY = {"use_dictionary": False, "write_statistics": False}


def write(path: Path, images, labels, *, image_type=None, label_type=None, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"other": pa.nulls(len(labels)), "image": pa.array(images, image_type)}
    pq.write_table(pa.table({**columns, "label": pa.array(labels, label_type)}), path, **options)


def load(place: Path, split="train"):
    return load_examples(f"parquet:{place}", split, data_dir=place)


@pytest.mark.parametrize(
    ("images", "image_type"),
    [
        (PNGS[:2], pa.binary()),
        (PNGS[:2], pa.large_binary()),
        (
            [{"bytes": content, "path": "a.png"} for content in PNGS[:2]],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        (list(PIXELS[:2].reshape(2, 784)), pa.list_(pa.uint8(), 784)),
        (list(PIXELS[:2].reshape(2, 784)), pa.list_(pa.uint8())),
    ],
    ids=["binary", "large_binary", "struct", "fixed_list", "list"],
)
def test_images_are_read_however_they_are_stored(tmp_path, images, image_type):
    write(tmp_path / "a.parquet", images, [4, 7], image_type=image_type)
    for place in (tmp_path, tmp_path / "a.parquet"):
        examples = load(place)
        assert np.array_equal(examples.images.numpy(), PIXELS[:2].reshape(2, 1, 28, 28))
        assert (examples.images.dtype, examples.labels.dtype) == (torch.uint8, torch.int64)
        assert examples.labels.tolist() == [0, 1]
        assert examples.class_names == ("4", "7")
        assert examples.conversion is None


def test_a_file_that_duckdb_wrote_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    pixels = pa.table({"image": list(PIXELS[:2].reshape(2, 784)), "label": ["x", "w"]})
    connection = duckdb.connect()
    connection.register("pixels", pixels)
    connection.execute(f"copy (select image::utinyint[784] as image, label from pixels) to '{path}' (format parquet)")
    connection.close()
    examples = load(path)
    assert np.array_equal(examples.images.numpy(), PIXELS[:2].reshape(2, 1, 28, 28))
    assert examples.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "label_type", "class_names", "indices"),
    [
        ([10, 2, -1], pa.int64(), ("-1", "2", "10"), [2, 1, 0]),
        ([10, 2, 2], pa.uint8(), ("2", "10"), [1, 0, 0]),
        (["cat", "ant", "cat"], pa.string(), ("ant", "cat"), [1, 0, 1]),
        (["cat", "ant", "cat"], pa.large_string(), ("ant", "cat"), [1, 0, 1]),
        (["cat", "ant", "cat"], pa.dictionary(pa.int32(), pa.string()), ("ant", "cat"), [1, 0, 1]),
    ],
)
def test_the_classes_are_the_distinct_training_labels_in_order(tmp_path, labels, label_type, class_names, indices):
    write(tmp_path / "a.parquet", PNGS[:3], labels, label_type=label_type)
    examples = load(tmp_path)
    assert examples.class_names == class_names
    assert examples.labels.tolist() == indices


@pytest.mark.parametrize("names", ["train/a b.parquet,test/c.parquet", "train-0.parquet,data/test-0.parquet"])
def test_folders_or_file_names_give_the_splits(tmp_path, names):
    train_name, test_name = names.split(",")
    write(tmp_path / train_name, PNGS[:3], [0, 1, 2])
    write(tmp_path / test_name, PNGS[3:5], [2, 0])
    write(tmp_path / "validation.parquet", PNGS[5:6], [1])
    write(tmp_path / "_temporary" / "train.parquet", PNGS[5:6], [9])
    train, test = load(tmp_path), load(tmp_path, "test")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 1], [2, 0])
    assert (train.num_validation, test.num_validation) == (1, 0)
    assert train.found.left_out == ("1 files below names that begin with '_' (_temporary/train.parquet)",)
    assert np.array_equal(test.images[:, 0].numpy(), PIXELS[3:5])
    assert train.class_names == test.class_names == ("0", "1", "2")


def test_without_splits_every_fifth_row_of_a_class_is_a_test_row_over_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_file, "ROWS_PER_BATCH", 2)
    write(tmp_path / "a.parquet", PNGS[:7], ["x"] * 4 + ["y"] * 3)
    write(tmp_path / "b.parquet", PNGS[7:], ["x"] * 1 + ["y"] * 4)
    train, test = load(tmp_path), load(tmp_path, "test")
    assert np.array_equal(test.images[:, 0].numpy(), PIXELS[[7, 9]])
    assert test.labels.tolist() == [0, 1]
    assert np.array_equal(train.images[:, 0].numpy(), PIXELS[[0, 1, 2, 3, 4, 5, 6, 8, 10, 11]])
    assert train.labels.tolist() == [0] * 4 + [1] * 6


def test_encoded_images_of_another_kind_are_converted_and_it_is_said(tmp_path):
    write(tmp_path / "a.parquet", [PNGS[0], png(np.zeros((32, 40, 3), np.uint8))], [0, 1])
    options = ImageForm(MNIST_SHAPE, "crop").options
    examples = load_examples(f"parquet:{tmp_path}", "train", data_dir=tmp_path, options=options)
    assert examples.conversion == "1 image of 40x32 RGB -> 28x28 grey, cropped"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (PNGS[:2], [0, None], "a label is null; drop the row or fill it in"),
        ([PNGS[0], None], [0, 1], "the image of row 1 is null; drop or fix the row"),
        (
            pa.array([[0] * 784, [0] * 783], pa.list_(pa.uint8())),
            [0, 1],
            "the image of row 1 is null or not of 784 pixels; drop or fix the row",
        ),
        (
            pa.array([[0] * 784, [0] * 783 + [None]], pa.list_(pa.uint8(), 784)),
            [0, 1],
            "the image of row 1 is null or not of 784 pixels; drop or fix the row",
        ),
        (PNGS[:2], [0.5, 1.0], "the column label is double; it needs integers or strings"),
        (["a", "b"], [0, 1], "the column image is string; it needs encoded images"),
        (pa.array([[0.5] * 784] * 2), [0, 1], "the column image is list<element: double>; it needs encoded images"),
    ],
)
def test_a_column_that_does_not_fit_is_refused_with_its_file(tmp_path, images, labels, message):
    write(tmp_path / "a.parquet", images, labels)
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert str(error.value).startswith(f"dataset=parquet:{tmp_path}: a.parquet: {message}")


@pytest.mark.parametrize("missing", ["image", "label"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path, missing):
    columns = {"image": PNGS[:2], "label": [0, 1], "more": [0, 1]}
    del columns[missing]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = ", ".join(columns)
    with pytest.raises(DataError, match=f"a.parquet: needs one column '{missing}'; it has the columns {found}"):
        load(tmp_path)


def test_an_image_that_cannot_be_decoded_is_named_by_its_row(tmp_path):
    write(tmp_path / "a.parquet", [PNGS[0], b"no image", b"neither"], [0, 1, 1])
    with pytest.raises(DataError, match=r"2 of 3 images cannot be read, the first is row 1 of a\.parquet \("):
        load(tmp_path)


def test_a_test_label_that_is_no_training_label_is_refused(tmp_path):
    write(tmp_path / "train.parquet", PNGS[:2], [0, 1])
    write(tmp_path / "test.parquet", PNGS[:2], [0, 5])
    with pytest.raises(DataError, match="has test rows but no training rows of the classes 5"):
        load(tmp_path, "test")


def test_files_with_different_image_types_are_refused(tmp_path):
    write(tmp_path / "a.parquet", PNGS[:2], [0, 1])
    write(tmp_path / "b.parquet", list(PIXELS[:2].reshape(2, 784)), [0, 1])
    with pytest.raises(DataError, match="image columns of different types"):
        load(tmp_path)


def test_an_extension_type_is_refused(tmp_path):
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS[:2])
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="the column image has an Arrow extension type; write it as a plain type"):
        load(tmp_path)


def test_an_unknown_extension_type_is_refused_too(tmp_path):
    metadata = {"ARROW:extension:name": "somebody.elses.type"}
    schema = pa.schema([pa.field("image", pa.binary(), metadata=metadata), ("label", pa.int64())])
    pq.write_table(pa.table([PNGS[:2], [0, 1]], schema=schema), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="the column image has an Arrow extension type; write it as a plain type"):
        load(tmp_path)


def test_a_flipped_byte_in_a_page_with_a_checksum_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    write(path, PNGS, [0, 1] * 6, **options)
    content = bytearray(path.read_bytes())
    position = content.index(PNGS[5]) + 100
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: damaged Parquet file \(.*CRC"):
        load(tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_file_that_is_cut_short_is_refused(tmp_path, kept):
    path = tmp_path / "a.parquet"
    write(path, PNGS[:2], [0, 1])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"a\.parquet: damaged Parquet file"):
        load(tmp_path)


def test_an_empty_set_is_refused(tmp_path):
    write(tmp_path / "a.parquet", [], [], image_type=pa.binary(), label_type=pa.int64())
    with pytest.raises(DataError, match="has no images; at least one is needed"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "empty", "without Parquet"])
def test_a_place_without_parquet_files_is_refused(tmp_path, kind):
    place = tmp_path / kind
    if kind != "missing":
        place.mkdir()
    if kind == "without Parquet":
        (place / "notes.txt").write_text("a")
    with pytest.raises(DataError, match="check the path"):
        load(place)


@pytest.mark.parametrize("images", [PNGS, list(PIXELS.reshape(-1, 784))], ids=["encoded", "pixels"])
def test_a_stream_has_the_images_and_the_fingerprint_of_the_split_in_memory(tmp_path, monkeypatch, images):
    monkeypatch.setattr(parquet_file, "ROWS_PER_BATCH", 5)
    monkeypatch.setattr(decoded_images, "_IMAGES_PER_PIECE", 4)
    image_type = None if isinstance(images[0], bytes) else pa.list_(pa.uint8())
    write(tmp_path / "a.parquet", images[:7], ["x"] * 7, image_type=image_type)
    write(tmp_path / "b.parquet", images[7:], ["y"] * 5, image_type=image_type)
    stream = stream_examples(f"parquet:{tmp_path}", "train", data_dir=tmp_path)
    whole = load(tmp_path)
    for _ in range(2):
        pieces = list(stream.read())
        assert 1 < len(pieces) <= 4
        assert torch.equal(torch.cat(pieces), whole.images)
    assert torch.equal(stream.labels, whole.labels)
    assert stream.scan() == (whole.fingerprint, whole.conversion)


def read_to_train_and_to_predict(place: str) -> tuple[list[str], int]:
    """Returns what reading a file to train and to predict says, and by how many MiB the process grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = []
    try:
        said.append(str(len(load(Path(place)))))
    except DataError as error:
        said.append(str(error))
    try:
        spans = list(find_images(place).spans(1000))
        said.append(
            f"{sum(image.error is not None for span in spans for image in span.read(ImageForm(MNIST_SHAPE)))} errors"
        )
    except DataError as error:
        said.append(str(error))
    return said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


def outcome_and_growth(path: Path) -> tuple[list[str], int]:
    # In a process of its own: the greatest size of this one is that of some test before.
    return call(read_to_train_and_to_predict, str(path))


@pytest.mark.parametrize("is_struct", [False, True], ids=["binary", "struct"])
def test_one_large_value_in_many_rows_stays_one(tmp_path: Path, is_struct: bool) -> None:
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([bytes(16 << 20)]))
    images = pa.StructArray.from_arrays([shared], ["bytes"]) if is_struct else shared
    path = tmp_path / "a.parquet"
    table = pa.table({"image": images, "label": ["a", "b"] * 50})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=False)
    assert path.stat().st_size < 3000  # for 1,600 MiB
    said, growth = outcome_and_growth(path)
    assert "80 of 80 images cannot be read" in said[0]
    assert said[1] == "100 errors"
    assert growth < 500


def test_labels_of_a_large_text_in_many_rows_stay_one(tmp_path: Path) -> None:
    texts = pa.array(["a" * (16 << 20), "b"])
    labels = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 250, pa.int32()), texts)
    table = pa.table({"image": [PNGS[0]] * 500, "label": labels})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30,
                   store_schema=False)  # fmt: skip
    assert outcome_and_growth(tmp_path / "a.parquet")[1] < 1000


def test_lists_of_far_too_many_pixels_are_not_read(tmp_path: Path) -> None:
    lists = pa.ListArray.from_arrays([0, 30 << 20, 60 << 20], pa.array(np.zeros(60 << 20, np.uint8)))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": lists, "label": ["a", "b"]}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    said, growth = outcome_and_growth(path)
    assert [line.rpartition(": ")[2] for line in said] == [
        "62914560 pixels in 2 images; more than 262144 in a list are refused; write encoded images"
    ] * 2
    # Read, they would be more than 60 MiB at least.
    assert growth < 50


def test_a_cell_larger_than_an_image_may_be_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, [bytes(300 << 20)], ["a"], compression="zstd", **QUICKLY)
    said, growth = outcome_and_growth(path)
    assert "row group 0 has images of 3145" in said[0]
    assert "in 1 rows; an image may have 268435456; drop the row" in said[0]
    assert growth < 100


def test_images_that_are_large_are_read_a_few_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [bytes([n]) * (8 << 20) for n in range(100)], ["a", "b"] * 50, compression="zstd",
          write_batch_size=1, **QUICKLY)  # fmt: skip
    said, growth = outcome_and_growth(tmp_path / "a.parquet")
    assert "80 of 80 images cannot be read" in said[0]
    # 800 MiB in all: a reader that keeps what it has seen needs far more.
    assert growth < 300


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_the_unpacked_size_of_each_page_is_read_from_its_header(tmp_path: Path, version: str) -> None:
    sizes = [10, 200_000, 3000]
    path = tmp_path / "a.parquet"
    write(path, [bytes(size) for size in sizes], ["a"] * 3, compression="zstd", use_dictionary=False, data_page_size=1,
          write_batch_size=1, data_page_version=version)  # fmt: skip
    column = pq.read_metadata(path).row_group(0).column(1)
    with open(path, "rb") as file:
        found = list(unpacked_sizes(file, column.data_page_offset, column.total_compressed_size))
        # Four bytes say a value's length, a few which rows are null.
        assert [max(size - wanted - 4, 0) < 10 for size, wanted in zip(found, sizes, strict=True)] == [True] * 3
        assert sum(found) < column.total_uncompressed_size < sum(found) + 10_000  # headers hold values too
        with pytest.raises(OSError, match="page header"):
            list(unpacked_sizes(file, column.data_page_offset + 1, column.total_compressed_size))


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_cell_too_large_for_a_page_is_refused_among_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_dictionary: bool
) -> None:
    path = tmp_path / "a.parquet"
    write(path, [PNGS[0]] * 500 + [bytes(3 << 20)] + [PNGS[0]] * 500, ["a", "b"] * 500 + ["a"], compression="zstd",
          use_dictionary=use_dictionary)  # fmt: skip
    assert "1 of 801 images cannot be read" in outcome_and_growth(path)[0][0]
    monkeypatch.setattr(parquet_pages, "MAX_PAGE_BYTES", 2 << 20)
    line = r"row group 0 has a page of images that unpacks to [34]\d{6} bytes, more than 2097152; drop non-image cells"
    with pytest.raises(DataError, match=line):
        load(path)
    with pytest.raises(DataError, match=line):
        find_images(str(path))
