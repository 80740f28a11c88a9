import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_ray.data.datasets import load_examples
from mnist_ray.errors import DataError, StorageError
from mnist_ray.storage.storage import open_storage
from tests.support.idx_files import some_images

pytestmark = pytest.mark.s3

PIXELS = some_images(3)


def png(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def test_a_folder_of_images_is_read_from_s3(s3_uri, tmp_path):
    storage = open_storage(s3_uri)
    for name, pixels in zip(("train/a/1.png", "train/b/1.png", "test/b/1.png"), PIXELS, strict=True):
        storage.write_bytes(name, png(pixels))
    train = load_examples(f"folder:{s3_uri}", "train", data_dir=tmp_path)
    assert np.array_equal(train.images[:, 0].numpy(), PIXELS[:2])
    assert load_examples(f"folder:{s3_uri}", "test", data_dir=tmp_path).labels.tolist() == [1]


def test_sizes_and_colours_of_images_are_found_on_s3(s3_uri, tmp_path):
    storage = open_storage(s3_uri)
    colours = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)
    for number, pixels in enumerate(colours):
        storage.write_bytes(f"{'ab'[number % 2]}/{number}.png", png(pixels))
    train = load_examples(f"folder:{s3_uri}", "train", data_dir=tmp_path)
    assert np.array_equal(train.images.numpy(), colours[[0, 2, 1, 3]].transpose(0, 3, 1, 2))
    storage.write_bytes("a/small.png", png(colours[0, :10]))
    with pytest.raises(DataError, match=r"2 sizes: 30x20 \(4\), 30x10 \(1\); choose one with --image-size 30x20"):
        load_examples(f"folder:{s3_uri}", "train", data_dir=tmp_path)


@pytest.mark.parametrize("place", ["", "/a.parquet"])
def test_parquet_is_read_from_s3_as_a_folder_or_a_file(s3_uri, tmp_path, place):
    content = io.BytesIO()
    pq.write_table(pa.table({"image": [png(pixels) for pixels in PIXELS], "label": [5, 3, 5]}), content)
    open_storage(s3_uri).write_bytes("a.parquet", content.getvalue())
    train = load_examples(f"parquet:{s3_uri}{place}", "train", data_dir=tmp_path)
    assert np.array_equal(train.images[:, 0].numpy(), PIXELS)
    assert train.labels.tolist() == [1, 0, 1]


def test_a_prefix_without_files_is_a_data_error_and_a_missing_bucket_a_storage_error(s3_uri, tmp_path):
    for kind in ("folder", "parquet"):
        with pytest.raises(DataError, match="there are no files in"):
            load_examples(f"{kind}:{s3_uri}/nothing", "train", data_dir=tmp_path)
        with pytest.raises(StorageError, match="the bucket does not exist"):
            load_examples(f"{kind}:s3://no-such-bucket/a", "train", data_dir=tmp_path)
