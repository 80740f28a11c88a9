"""Turns log-probabilities into counts that add up over shards, and counts into rates, intervals and calibration.

A Tally holds all the rates need, so a split can be evaluated in any number of pieces. All rates are fractions.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of one run for n examples; the columns of the predictions table.

    Attributes:
      label: int64 [n], the true classes.
      predicted_label: int64 [n], the most probable class; the first in a tie.
      correct: bool [n].
      confidence: float32 [n], probability of the predicted class.
      label_probability: float32 [n], probability of the true class.
      label_rank: int64 [n], rank of the true class by probability, from 0; the first in a tie ranks higher, and an
        example is correct if the rank is 0.
      loss: float32 [n], cross-entropy in nats; finite also where label_probability rounds to 0.
      probabilities: float32 [n, classes].
    """

    label: NDArray[np.int64]
    predicted_label: NDArray[np.int64]
    correct: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    label_probability: NDArray[np.float32]
    label_rank: NDArray[np.int64]
    loss: NDArray[np.float32]
    probabilities: NDArray[np.float32]


def predictions(log_probabilities: "Tensor", labels: "Tensor") -> Predictions:
    """Derives predictions from the log-probabilities of one run.

    Args:
      log_probabilities: floating [n, classes], natural logarithms, on any device.
      labels: int64 [n], in [0, classes).

    Raises:
      CheckpointError: an output of the model is not a number.
    """
    scores: NDArray[np.float32] = log_probabilities.detach().cpu().float().numpy()
    label: NDArray[np.int64] = labels.detach().cpu().numpy()
    # Comparisons with NaN are false, so NaN would get rank 0 and count as correct.
    broken = np.flatnonzero(np.isnan(scores).any(axis=1))
    if broken.size:
        raise CheckpointError(
            f"log_probabilities: not a number for {broken.size} of {len(scores)} examples, the first at row "
            f"{broken[0]}; the model's weights overflow: train the run again with a lower learning rate"
        )
    rows = np.arange(len(scores))
    # numpy's argmax takes the first in a tie, torch's guarantees no order.
    predicted_label = scores.argmax(axis=1)
    # Computed in float64, so the rounded result does not depend on the machine's vector instructions.
    probabilities = np.exp(scores.astype(np.float64)).astype(np.float32)
    label_score = scores[rows, label][:, None]  # [n, 1]
    equal_before = (scores == label_score) & (np.arange(scores.shape[1]) < label[:, None])  # [n, classes]
    return Predictions(
        label=label,
        predicted_label=predicted_label,
        correct=predicted_label == label,
        confidence=probabilities[rows, predicted_label],
        label_probability=probabilities[rows, label],
        label_rank=((scores > label_score) | equal_before).sum(axis=1),
        # 0.0 - x, not -x: a certain answer costs 0, not -0.
        loss=np.float32(0) - label_score[:, 0],
        probabilities=probabilities,
    )


@dataclass(frozen=True, eq=False)
class Tally:
    """Sums over the examples of one run; tallies of disjoint examples add up with +.

    Attributes:
      num_classes: number of classes.
      pairs: int64 [pairs], occurring pairs of true and predicted class as true * num_classes + predicted, in order;
        with thousands of classes, far fewer than all pairs.
      pair_count: int64 [pairs], examples of each pair.
      bin_count: int64 [bins], examples by confidence, see `bin_edges`.
      bin_correct: int64 [bins], correct examples among them.
      bin_confidence: float64 [bins], sum of their confidences.
      log_loss_sum: sum of the cross-entropy, nats.
      brier_sum: sum over examples and classes of (probability - 1 if the class is the true one else 0) squared.
      top2_correct: examples whose true class is among the two most probable.
    """

    num_classes: int
    pairs: NDArray[np.int64]
    pair_count: NDArray[np.int64]
    bin_count: NDArray[np.int64]
    bin_correct: NDArray[np.int64]
    bin_confidence: NDArray[np.float64]
    log_loss_sum: float
    brier_sum: float
    top2_correct: int

    @property
    def num_examples(self) -> int:
        """Number of examples tallied."""
        return int(self.pair_count.sum())

    @property
    def num_correct(self) -> int:
        """Number of examples whose predicted class is the true one."""
        label, predicted = np.divmod(self.pairs, self.num_classes)
        return int(self.pair_count[label == predicted].sum())

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Examples by true class (row) and predicted class (column), int64 [classes, classes]."""
        matrix = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        matrix.flat[self.pairs] = self.pair_count
        return matrix

    def __add__(self, other: "Tally") -> "Tally":
        pairs, place = np.unique(np.concatenate((self.pairs, other.pairs)), return_inverse=True)
        pair_count = np.zeros(len(pairs), dtype=np.int64)
        np.add.at(pair_count, place, np.concatenate((self.pair_count, other.pair_count)))
        return Tally(
            num_classes=self.num_classes,
            pairs=pairs,
            pair_count=pair_count,
            bin_count=self.bin_count + other.bin_count,
            bin_correct=self.bin_correct + other.bin_correct,
            bin_confidence=self.bin_confidence + other.bin_confidence,
            log_loss_sum=self.log_loss_sum + other.log_loss_sum,
            brier_sum=self.brier_sum + other.brier_sum,
            top2_correct=self.top2_correct + other.top2_correct,
        )


def tally(shard: Predictions, *, num_bins: int) -> Tally:
    """Counts and sums the predictions of one run on zero or more examples.

    Sums floats in float64 in an order that depends only on the shard, so a retried shard gives the same bits.

    Args:
      shard: the predictions.
      num_bins: bins of the confidence, at least 1.
    """
    num_classes = shard.probabilities.shape[1]
    pairs, pair_count = np.unique(shard.label * num_classes + shard.predicted_label, return_counts=True)
    # Inner edges only: values at or below the first fall into bin 0, values above the last into the last bin.
    bins = np.searchsorted(bin_edges(num_bins)[1:-1], shard.confidence.astype(np.float64), side="left")
    bin_confidence = np.zeros(num_bins)
    np.add.at(bin_confidence, bins, shard.confidence)
    errors = shard.probabilities.astype(np.float64)  # [n, classes]
    errors[np.arange(len(errors)), shard.label] -= 1.0
    return Tally(
        num_classes=num_classes,
        pairs=pairs,
        pair_count=pair_count,
        bin_count=np.bincount(bins, minlength=num_bins),
        bin_correct=np.bincount(bins[shard.correct], minlength=num_bins),
        bin_confidence=bin_confidence,
        log_loss_sum=float(shard.loss.sum(dtype=np.float64)),
        brier_sum=float(np.square(errors).sum()),
        top2_correct=int((shard.label_rank < 2).sum()),
    )


def bin_edges(num_bins: int) -> NDArray[np.float64]:
    """Returns the edges of equal-width bins of [0, 1], float64 [bins + 1].

    Bin b holds values above edge b and at or below edge b + 1; 0 belongs to bin 0.
    """
    return np.arange(num_bins + 1) / num_bins


@dataclass(frozen=True)
class Rates:
    """The rates of one run on a split, named as the columns of the metrics table.

    Attributes:
      num_examples: examples evaluated.
      accuracy: share of examples whose predicted class is the true one.
      accuracy_low: lower end of the 95 % Wilson interval of the accuracy.
      accuracy_high: upper end of the interval.
      log_loss: mean cross-entropy, nats.
      brier: mean over examples of the sum over classes of squared errors of the probabilities, in [0, 2] (Brier 1950,
        'Verification of forecasts expressed in terms of probability'): for two classes twice the one-sided score.
      ece: expected calibration error, mean over examples of |accuracy - mean confidence| of the example's bin (Guo et
        al. 2017, 'On calibration of modern neural networks').
      top2_accuracy: share of examples whose true class is among the two most probable; equally probable classes are
        ordered by index, so at most two count.
      precision_macro: mean precision over all classes.
      recall_macro: mean recall over all classes.
      f1_macro: mean F1 over all classes.
      precision_weighted: mean precision over classes, weighted by support.
      recall_weighted: mean recall over classes, weighted by support.
      f1_weighted: mean F1 over classes, weighted by support.
    """

    num_examples: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    log_loss: float
    brier: float
    ece: float
    top2_accuracy: float
    precision_macro: float
    recall_macro: float
    f1_macro: float
    precision_weighted: float
    recall_weighted: float
    f1_weighted: float


def rates(total: Tally) -> Rates:
    """Returns the rates of one run from the tally of at least one example."""
    num_examples = total.num_examples
    low, high = wilson_interval(total.num_correct, num_examples)
    classes = class_rates(total.confusion)
    return Rates(
        num_examples=num_examples,
        accuracy=total.num_correct / num_examples,
        accuracy_low=low,
        accuracy_high=high,
        log_loss=total.log_loss_sum / num_examples,
        brier=total.brier_sum / num_examples,
        ece=float(np.abs(total.bin_correct - total.bin_confidence).sum()) / num_examples,
        top2_accuracy=total.top2_correct / num_examples,
        precision_macro=float(classes.precision.mean()),
        recall_macro=float(classes.recall.mean()),
        f1_macro=float(classes.f1.mean()),
        precision_weighted=float((classes.precision * classes.support).sum()) / num_examples,
        recall_weighted=float((classes.recall * classes.support).sum()) / num_examples,
        f1_weighted=float((classes.f1 * classes.support).sum()) / num_examples,
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Returns the 95 % score interval of a proportion, without continuity correction.

    Args:
      successes: in [0, trials].
      trials: at least 1.

    Reference: Wilson 1927, 'Probable inference, the law of succession, and statistical inference'.
    """
    # Imported here: the import is slow, and workers don't need it.
    from scipy import stats

    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True, eq=False)
class ClassRates:
    """Rates by class, named as the columns of the per_class table.

    As in scikit-learn with labels=range(classes) and zero_division=0: a rate whose denominator is 0 is 0, and a class
    without examples counts as 0 in the macro averages.

    Attributes:
      precision: float64 [classes], share of the predictions of the class that are correct.
      recall: float64 [classes], share of the examples of the class that are found.
      f1: float64 [classes], harmonic mean of the two.
      support: int64 [classes], examples of the class.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]


def class_rates(confusion: NDArray[np.int64]) -> ClassRates:
    """Returns precision, recall, F1 and support of each class.

    Args:
      confusion: int64 [classes, classes], examples by true class (row) and predicted class (column).
    """
    right = confusion.diagonal()
    predicted = confusion.sum(axis=0)
    support = confusion.sum(axis=1)
    return ClassRates(
        precision=_ratio(right, predicted),
        recall=_ratio(right, support),
        f1=_ratio(2 * right, predicted + support),
        support=support,
    )


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    # If the denominator is 0, so is the numerator, and the ratio is 0.
    return numerator / np.maximum(denominator, 1)


def calibration(total: Tally) -> dict[str, list[Any]]:
    """Returns the calibration table of one run: column name -> one value per bin, None for an empty bin."""
    edges = bin_edges(len(total.bin_count)).tolist()
    counts = total.bin_count.tolist()

    def means(sums: list[Any]) -> list[float | None]:
        return [value / count if count else None for value, count in zip(sums, counts, strict=True)]

    return {
        "confidence_low": edges[:-1],
        "confidence_high": edges[1:],
        "mean_confidence": means(total.bin_confidence.tolist()),
        "accuracy": means(total.bin_correct.tolist()),
        "count": counts,
    }
