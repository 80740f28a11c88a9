import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from mnist_ray.data.datasets import load_examples


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
    first = np.rint(load_digits().images[0] * 255 / 16).astype(np.uint8)
    expected = Image.fromarray(first).resize((28, 28), Image.Resampling.BILINEAR)
    assert np.array_equal(train.images[0, 0].numpy(), np.asarray(expected))
    assert train.conversion == "1442 images of 8x8 grey -> 28x28 grey"


def test_the_splits_share_no_image(tmp_path):
    train, test = load("train", tmp_path), load("test", tmp_path)
    seen = {image.numpy().tobytes() for image in train.images}
    assert not seen & {image.numpy().tobytes() for image in test.images}
    assert train.fingerprint == load("train", tmp_path).fingerprint
    assert train.fingerprint != test.fingerprint
