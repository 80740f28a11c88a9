"""Selects the images of a report: images that most runs get wrong, images that they dispute, and the first images.

Each shard selects its candidates and the split's images are the best of these, so memory and table stay small.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mnist_ray.evaluation.metrics import Predictions

if TYPE_CHECKING:
    from torch import Tensor

HARDEST, DISPUTED, SAMPLE = "hardest", "disputed", "sample"
_VOTES_AT_ONCE = 1 << 20
SHOWN = {HARDEST: 40, DISPUTED: 40, SAMPLE: 20}


@dataclass(frozen=True)
class ShownImage:
    """An image and the combined predictions of all runs.

    Attributes:
      reason: hardest, disputed or sample.
      example_index: index in the split, from 0.
      label: true class.
      image: PNG.
      num_runs_wrong: runs whose predicted class is not the true one.
      vote_entropy: entropy of the runs' predicted classes in nats, one vote per run.
      mean_loss: cross-entropy in nats, mean over the runs.
    """

    reason: str
    example_index: int
    label: int
    image: bytes
    num_runs_wrong: int
    vote_entropy: float
    mean_loss: float

    @property
    def _place(self) -> tuple[float, ...]:
        if self.reason == HARDEST:
            return -self.num_runs_wrong, -self.mean_loss, self.example_index
        if self.reason == DISPUTED:
            return -self.vote_entropy, -self.mean_loss, self.example_index
        return (self.example_index,)


def candidates(images: "Tensor", predictions: Sequence[Predictions], *, first: int) -> tuple[ShownImage, ...]:
    """Returns the images of one shard that the split's gallery may show.

    The hardest images are wrong in the most runs, then have the highest mean loss. Disputed images have the highest
    vote entropy above 0 (Dagan and Engelson, "Committee-based sampling", ICML 1995).

    Args:
      images: uint8 [n, channels, height, width].
      predictions: of each run, for the same n examples.
      first: index of the shard's first example in the split.
    """
    predicted = np.stack([of_run.predicted_label for of_run in predictions])  # [runs, n]
    num_wrong = np.stack([~of_run.correct for of_run in predictions]).sum(axis=0)
    loss = np.stack([of_run.loss for of_run in predictions]).mean(axis=0, dtype=np.float64)
    entropy = vote_entropy(predicted)
    index = np.arange(predicted.shape[1])
    chosen = {
        HARDEST: _first(np.lexsort((index, -loss, -num_wrong)), num_wrong > 0, SHOWN[HARDEST]),
        DISPUTED: _first(np.lexsort((index, -loss, -entropy)), entropy > 0, SHOWN[DISPUTED]),
        SAMPLE: index[: max(0, SHOWN[SAMPLE] - first)],
    }
    labels = predictions[0].label
    return tuple(
        ShownImage(
            reason, first + int(place), int(labels[place]), _png(images[place]),
            int(num_wrong[place]), float(entropy[place]), float(loss[place]),
        )
        for reason, places in chosen.items()
        for place in places
    )  # fmt: skip


def vote_entropy(predicted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the entropy of each example's votes in nats, float64 [n].

    Args:
      predicted: int64 [runs, n], each run's class.
    """
    num_classes = int(predicted.max()) + 1
    pieces = range(0, predicted.shape[1], max(1, _VOTES_AT_ONCE // num_classes))
    entropies = [_vote_entropy(predicted[:, first : first + pieces.step], num_classes) for first in pieces]
    return np.concatenate(entropies)


def _vote_entropy(predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    num_runs, num_examples = predicted.shape
    votes = np.zeros((num_examples, num_classes), dtype=np.int64)
    for of_run in predicted:
        votes[np.arange(num_examples), of_run] += 1
    # Sorted, so equal counts give bit-identical sums for any classes.
    share = np.sort(votes, axis=1) / num_runs
    logs = np.log(share, where=share > 0, out=np.zeros_like(share))
    # 0.0 - x, not -x: runs that agree get 0, not -0.
    return np.asarray(0.0 - (share * logs).sum(axis=1))


def gallery(of_shards: Iterable[ShownImage]) -> list[ShownImage]:
    """Returns the shown images by reason, then by rank.

    Args:
      of_shards: candidates of every shard, in any order.
    """
    ranked = sorted(of_shards, key=lambda image: image._place)
    by_reason = {reason: [image for image in ranked if image.reason == reason] for reason in SHOWN}
    return [image for reason, count in SHOWN.items() for image in by_reason[reason][:count]]


def _first(order: NDArray[np.int64], is_allowed: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    return order[is_allowed[order]][:count]


def _png(image: "Tensor") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.movedim(0, -1)
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()
