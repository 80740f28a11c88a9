"""What is said of the data before it is trained on."""

import pytest
import torch

from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.examples import Examples, Found
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import DataError
from mnist_ray.training.data import prepare_data, stratified_rows
from mnist_ray.training.data_lines import training_lines

CPU = torch.device("cpu")
NAMES = tuple("abcdefg")


def own_data(sizes: list[int], *, num_validation: int = 0, **found) -> Examples:
    """Images that lie class by class, the pixels of each its number."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    images = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous()
    examples = Examples(images, labels, NAMES[: len(sizes)], "", None, num_validation, Found(**found))
    return examples.stream("x").load()


def prepared(examples: Examples, **settings) -> TrainingData:
    return prepare_data(TrainConfig(dataset="folder:/x", **settings), examples, device=CPU)


def test_two_lines_say_classes_images_what_was_left_out_and_the_last_batch():
    found = {"splits": "splits by name: train, test", "num_test": 9, "left_out": ("2 links (a, b)",)}
    config = TrainConfig(dataset="folder:/x")
    assert training_lines(config, prepared(own_data([10] * 7, **found)), [64, 20]) == [
        (
            "dataset folder:/x: 7 classes (a, b, c, d, e and 2 more);"
            " 63 training, 7 validation (validation_fraction 0.1, per class), 9 test images"
        ),
        (
            "dataset folder:/x: splits by name: train, test; left out: 2 links (a, b); images of 28x28 grey;"
            " the last batch of an epoch has 3 images (global batch 20), 63 images (global batch 64)"
        ),
    ]


def test_a_given_validation_set_is_said_and_taken():
    data = prepared(own_data([10, 10], num_validation=4))
    assert (len(data.labels), data.validation_labels.tolist()) == (16, [1] * 4)
    line, _ = training_lines(TrainConfig(dataset="folder:/x"), data, [64])
    assert line == (
        "dataset folder:/x: 2 classes (a, b);"
        " 16 training, 4 validation (as given, so validation_fraction does not apply) images"
    )


def test_a_train_limit_of_ones_own_data_takes_each_class_by_its_share():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    rows = stratified_rows(labels, 11, source="x")
    # The shares are 5.5, 3.3 and 2.2: the largest remainder takes the eleventh.
    assert rows.tolist() == [0, 1, 2, 3, 4, 5, 50, 51, 52, 80, 81]


def test_a_small_class_keeps_an_example_under_any_train_limit():
    labels = torch.tensor([0] * 97 + [1, 2, 3])
    assert stratified_rows(labels, 5, source="x").tolist() == [0, 1, 97, 98, 99]
    assert stratified_rows(labels, 4, source="x").tolist() == [0, 97, 98, 99]
    with pytest.raises(DataError, match="train_limit=3 is less than one example for each of the 4 classes"):
        stratified_rows(labels, 3, source="dataset='folder:/x'")


@pytest.mark.parametrize("seed", range(5))
def test_any_train_limit_gives_as_many_rows_near_their_share(seed):
    labels = torch.randint(0, 6, (200,), generator=torch.Generator().manual_seed(seed))
    for limit in (6, 7, 50, 199, 200):
        rows = stratified_rows(labels, limit, source="x")
        counts = torch.bincount(labels[rows], minlength=6)
        assert len(set(rows.tolist())) == limit
        share = torch.bincount(labels, minlength=6) * limit / 200
        assert ((counts - share).abs() < 1).all()


def test_limited_rows_of_ones_own_data_have_a_fingerprint_of_their_own():
    examples = own_data([20, 20], num_validation=4)
    limited = prepared(examples, train_limit=10)
    assert (len(limited.labels), len(limited.validation_labels)) == (10, 4)
    assert sorted(limited.labels.tolist()) == [0] * 6 + [1] * 4
    assert limited.fingerprint != examples.fingerprint
    assert prepared(examples, train_limit=36).fingerprint == examples.fingerprint
    digits = prepare_data(TrainConfig(dataset="digits", train_limit=10), examples, device=CPU)
    assert digits.fingerprint == examples.fingerprint
