"""The images that a report shows."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import entropy

from mnist_ray.evaluation.gallery import SHOWN, ShownImage, candidates, gallery, vote_entropy
from mnist_ray.evaluation.metrics import Predictions, predictions

NUM_CLASSES = 4


def of_runs(num_runs: int, labels: torch.Tensor, *, seed: int = 0) -> list[Predictions]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_runs, len(labels), NUM_CLASSES, generator=generator)
    # Half of the examples are plain to all runs.
    logits[:, ::2] += 20 * torch.nn.functional.one_hot(labels[::2], NUM_CLASSES)
    return [predictions(of_run.log_softmax(dim=-1), labels) for of_run in logits]


def some_images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_vote_entropy_equals_scipys() -> None:
    predicted = np.array([[0, 1, 2, 0], [0, 1, 0, 1], [0, 2, 1, 2], [0, 2, 2, 3]])
    expected = [entropy(np.bincount(votes, minlength=NUM_CLASSES)) for votes in predicted.T]
    np.testing.assert_allclose(vote_entropy(predicted), expected, rtol=1e-15, atol=0)
    assert vote_entropy(predicted)[0] == 0


def test_the_votes_of_many_classes_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = np.random.default_rng(0).integers(0, 50, (7, 100))
    whole = vote_entropy(predicted)
    monkeypatch.setattr("mnist_ray.evaluation.gallery._VOTES_AT_ONCE", 50 * 30)
    np.testing.assert_array_equal(vote_entropy(predicted), whole)


def test_the_hardest_images_are_those_that_the_most_runs_get_wrong() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    # Probability of the true class under two runs; the rest goes to the next class.
    right = torch.tensor([[0.9, 0.4, 0.3, 0.2], [0.9, 0.6, 0.4, 0.45]])
    scores = torch.zeros(2, 4, NUM_CLASSES) + 1e-9
    for run in range(2):
        for example in range(4):
            scores[run, example, labels[example]] = right[run, example]
            scores[run, example, (labels[example] + 1) % NUM_CLASSES] = 1 - right[run, example]
    found = candidates(some_images(4), [predictions(run.log(), labels) for run in scores], first=10)
    hardest = [image for image in found if image.reason == "hardest"]
    assert [(image.example_index, image.num_runs_wrong) for image in hardest] == [(13, 2), (12, 2), (11, 1)]
    assert hardest[0].mean_loss == pytest.approx(-(np.log(0.2) + np.log(0.45)) / 2, rel=1e-6)
    disputed = [image for image in found if image.reason == "disputed"]
    assert [image.example_index for image in disputed] == [11]
    assert disputed[0].vote_entropy == pytest.approx(np.log(2))
    assert [image.example_index for image in found if image.reason == "sample"] == [10, 11, 12, 13]


def test_the_gallery_does_not_depend_on_the_shards() -> None:
    labels = torch.arange(300) % NUM_CLASSES
    images, runs = some_images(300), of_runs(5, labels)

    def in_shards(size: int) -> list[ShownImage]:
        pieces = []
        for first in range(0, 300, size):
            place = slice(first, first + size)
            part = [Predictions(**{name: values[place] for name, values in vars(of_run).items()}) for of_run in runs]
            pieces += candidates(images[place], part, first=first)
        return gallery(reversed(pieces))

    whole = in_shards(300)
    assert [image.reason for image in whole] == [reason for reason, count in SHOWN.items() for _ in range(count)]
    assert in_shards(7) == whole
    assert in_shards(64) == whole


def test_a_shown_image_is_the_image() -> None:
    labels = torch.arange(30) % NUM_CLASSES
    images = some_images(30)
    for shown in candidates(images, of_runs(3, labels), first=0):
        with Image.open(io.BytesIO(shown.image)) as opened:
            np.testing.assert_array_equal(np.asarray(opened), images[shown.example_index, 0].numpy())
        assert shown.label == labels[shown.example_index]


def test_runs_that_are_right_everywhere_leave_samples_only() -> None:
    labels = torch.arange(50) % NUM_CLASSES
    certain = torch.nn.functional.one_hot(labels, NUM_CLASSES).float().mul(50).log_softmax(dim=-1)
    found = gallery(candidates(some_images(50), [predictions(certain, labels)] * 3, first=0))
    assert {image.reason for image in found} == {"sample"}
    assert [image.example_index for image in found] == list(range(SHOWN["sample"]))
