import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from mnist_ray.data.datasets import load_examples
from mnist_ray.data.examples import rows_of_split


def load(split, tmp_path):
    return load_examples("digits", split, data_dir=tmp_path / "not-there", download=False)


def test_every_fifth_digit_of_each_class_is_a_test_image(tmp_path):
    train, test = load("train", tmp_path), load("test", tmp_path)
    assert (len(train), len(test)) == (1442, 355)
    assert train.labels.bincount().tolist() == [143, 146, 142, 147, 145, 146, 145, 144, 140, 144]
    assert test.labels.bincount().tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert train.class_names == test.class_names == tuple("0123456789")


def test_the_digits_are_scaled_to_255_and_resized(tmp_path):
    train = load("train", tmp_path)
    assert train.images.shape == (1442, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert train.images.max() == 255
    bunch = load_digits()
    chosen = rows_of_split(bunch.target, "train")
    assert np.array_equal(train.labels.numpy(), bunch.target[chosen])
    for image, pixels in zip(train.images[:, 0].numpy(), bunch.images[chosen], strict=True):
        scaled = Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8))
        assert np.array_equal(image, np.asarray(scaled.resize((28, 28), Image.Resampling.BILINEAR)))
    assert train.conversion == "1442 images of 8x8 grey -> 28x28 grey"


def test_the_splits_share_no_image(tmp_path):
    train, test = load("train", tmp_path), load("test", tmp_path)
    seen = {image.numpy().tobytes() for image in train.images}
    assert not seen & {image.numpy().tobytes() for image in test.images}
    assert train.fingerprint == load("train", tmp_path).fingerprint
    assert train.fingerprint != test.fingerprint
