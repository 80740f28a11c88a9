import dataclasses
import functools
import itertools
import operator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from mnist_ray.errors import CheckpointError
from mnist_ray.evaluation import metrics

CLASSES = 5
tally = functools.partial(metrics.tally, num_bins=15)


def random_example(num_examples=400, *, present=(0, 1, 2, 3, 4), bias=None):
    """Returns log-probabilities float32 [n, 5] of a model that is right about half the time, and labels int64 [n]."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor(present)[torch.randint(len(present), (num_examples,), generator=generator)]
    logits = 2.0 * torch.randn(num_examples, CLASSES, generator=generator)
    logits[torch.arange(num_examples), labels] += 1.5
    if bias is not None:
        logits += torch.tensor(bias)
    return torch.log_softmax(logits, dim=1), labels


# Classes 3 and 4 never occur; class 4 is never predicted either, class 2 occurs and is never predicted.
UNEVEN = {"present": (0, 1, 1, 2), "bias": (0.0, 0.0, -20.0, 0.0, -20.0)}


def from_probabilities(probabilities, labels):
    return metrics.predictions(torch.tensor(probabilities, dtype=torch.float64).log(), torch.tensor(labels))


@pytest.mark.parametrize("kind", [{}, UNEVEN])
def test_rates_equal_those_of_scikit_learn(kind):
    log_probabilities, labels = random_example(**kind)
    predicted = log_probabilities.argmax(dim=1)
    all_classes = {"labels": range(CLASSES)}

    rates = metrics.rates(tally(metrics.predictions(log_probabilities, labels)))

    probabilities = log_probabilities.double().exp()
    assert rates.num_examples == 400
    assert rates.accuracy == sklearn_metrics.accuracy_score(labels, predicted)
    loss = sklearn_metrics.log_loss(labels, probabilities / probabilities.sum(dim=1, keepdim=True), **all_classes)
    assert rates.log_loss == pytest.approx(loss, rel=1e-6)
    top2 = sklearn_metrics.top_k_accuracy_score(labels, log_probabilities, k=2, **all_classes)
    assert rates.top2_accuracy == pytest.approx(top2, abs=1e-15)
    for average in ("macro", "weighted"):
        expected = sklearn_metrics.precision_recall_fscore_support(
            labels, predicted, **all_classes, average=average, zero_division=0
        )[:3]
        ours = [getattr(rates, f"{name}_{average}") for name in ("precision", "recall", "f1")]
        assert ours == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("kind", [{}, UNEVEN])
def test_class_rates_and_confusion_equal_those_of_scikit_learn(kind):
    log_probabilities, labels = random_example(**kind)
    predicted = log_probabilities.argmax(dim=1)

    total = tally(metrics.predictions(log_probabilities, labels))
    classes = metrics.class_rates(total.confusion)

    confusion = sklearn_metrics.confusion_matrix(labels, predicted, labels=range(CLASSES))
    np.testing.assert_array_equal(total.confusion, confusion)
    expected = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(CLASSES), average=None, zero_division=0
    )
    for ours, theirs in zip(dataclasses.astuple(classes), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-15)


def test_brier_sums_the_squared_errors_over_the_classes():
    # (0.5 - 1)² + 0.25² + 0.25² = 0.375 and 1² + (0 - 1)² + 0² = 2, the worst there is.
    shard = from_probabilities([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]], [0, 1])
    assert tally(shard).brier_sum == 2.375

    log_probabilities, labels = random_example()
    truth = np.eye(CLASSES)[labels]
    expected = np.mean(np.sum((np.exp(log_probabilities.double().numpy()) - truth) ** 2, axis=1))
    rates = metrics.rates(tally(metrics.predictions(log_probabilities, labels)))
    assert rates.brier == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        (0, 1, (0.0, 0.7934506856227626)),
        (1, 1, (0.20654931437723742, 1.0)),
        (3, 10, (0.10779126740630099, 0.6032218525388546)),
        (9824, 10_000, (0.9796314012650262, 0.9847981171069451)),
        (1, 10**6, (1.765245767453717e-07, 5.664911804311443e-06)),
    ],
)
def test_the_wilson_interval_is_that_of_its_formula(successes, trials, expected):
    assert metrics.wilson_interval(successes, trials) == pytest.approx(expected, abs=1e-15)


def test_the_wilson_interval_ends_exactly_at_0_and_1():
    # z² / (n + z²) and n / (n + z²) with z² = 3.841458820694124.
    assert metrics.wilson_interval(0, 7) == (0.0, pytest.approx(0.3543304350666874, abs=1e-15))
    assert metrics.wilson_interval(7, 7) == (pytest.approx(0.6456695649333127, abs=1e-15), 1.0)
    # In floating point the plain formula misses the ends by 1e-17 for some of these.
    assert all(metrics.wilson_interval(0, n)[0] == 0.0 for n in range(1, 100))
    assert all(metrics.wilson_interval(n, n)[1] == 1.0 for n in range(1, 100))


def test_the_calibration_error_of_an_example_worked_by_hand():
    # Four bins: (0.25, 0.5] holds 0.5, on its upper edge, wrong; (0.5, 0.75] holds 0.625 right and 0.75 wrong;
    # (0.75, 1] holds 0.875 right. ECE = (|0 - 0.5| + |1 - 1.375| + |1 - 0.875|) / 4 = 0.25.
    shard = from_probabilities([[0.5, 0.5], [0.625, 0.375], [0.75, 0.25], [0.125, 0.875]], [1, 0, 1, 1])
    total = metrics.tally(shard, num_bins=4)

    assert metrics.rates(total).ece == 0.25
    assert metrics.calibration(total) == {
        "confidence_low": [0.0, 0.25, 0.5, 0.75],
        "confidence_high": [0.25, 0.5, 0.75, 1.0],
        "mean_confidence": [None, 0.5, 0.6875, 0.875],
        "accuracy": [None, 0.0, 0.5, 1.0],
        "count": [0, 1, 2, 1],
    }


@pytest.mark.parametrize("num_bins", [1, 7, 15])
def test_the_calibration_error_equals_a_loop_over_bins_and_examples(num_bins):
    log_probabilities, labels = random_example()
    shard = metrics.predictions(log_probabilities, labels)

    expected = 0.0
    for b in range(num_bins):
        members = [i for i in range(400) if b / num_bins < float(shard.confidence[i]) <= (b + 1) / num_bins]
        if members:
            accuracy = sum(bool(shard.correct[i]) for i in members) / len(members)
            confidence = sum(float(shard.confidence[i]) for i in members) / len(members)
            expected += len(members) / 400 * abs(accuracy - confidence)

    assert expected > 0.01
    assert metrics.rates(metrics.tally(shard, num_bins=num_bins)).ece == pytest.approx(expected, rel=1e-12)


def test_of_equally_probable_classes_the_first_is_predicted_and_ranks_first():
    shard = from_probabilities([[0.25, 0.25, 0.25, 0.25]] * 4, [0, 1, 2, 3])
    assert shard.predicted_label.tolist() == [0, 0, 0, 0]
    assert shard.correct.tolist() == [True, False, False, False]
    assert shard.label_rank.tolist() == [0, 1, 2, 3]
    assert metrics.rates(tally(shard)).top2_accuracy == 0.5


def test_the_loss_is_finite_where_the_probability_rounds_to_zero():
    log_probabilities = torch.log_softmax(torch.tensor([[200.0, 0.0], [0.0, 200.0]]), dim=1)
    shard = metrics.predictions(log_probabilities, torch.tensor([1, 1]))
    assert shard.label_probability.tolist() == [0.0, 1.0]
    assert shard.loss.tolist() == [200.0, 0.0]
    assert not np.signbit(shard.loss).any()
    assert metrics.rates(tally(shard)).log_loss == 100.0


def test_predictions_have_the_types_of_the_table():
    shard = metrics.predictions(*random_example())
    types = {field.name: getattr(shard, field.name).dtype.name for field in dataclasses.fields(shard)}
    assert types == {
        "label": "int64",
        "predicted_label": "int64",
        "correct": "bool",
        "confidence": "float32",
        "label_probability": "float32",
        "label_rank": "int64",
        "loss": "float32",
        "probabilities": "float32",
    }
    np.testing.assert_array_equal(shard.correct, shard.label_rank == 0)
    np.testing.assert_array_equal(shard.confidence, shard.probabilities.max(axis=1))


def test_an_output_that_is_not_a_number_is_no_prediction():
    log_probabilities = torch.log_softmax(torch.tensor([[1.0, 2.0], [float("inf"), 0.0], [float("nan"), 0.0]]), dim=1)
    with pytest.raises(CheckpointError) as error:
        metrics.predictions(log_probabilities, torch.tensor([0, 0, 0]))
    assert str(error.value) == (
        "log_probabilities: not a number for 2 of 3 examples, the first at row 1; "
        "the model's weights overflow: train the run again with a lower learning rate"
    )


@st.composite
def partitions(draw):
    """Draws log-probabilities full of ties and underflows, labels, and cuts of the rows, empty parts included."""
    num_classes = draw(st.integers(2, 5))
    logits = st.lists(st.sampled_from([0.0, 1.0, -1.0, 200.0]), min_size=num_classes, max_size=num_classes)
    rows = draw(st.lists(st.tuples(logits, st.integers(0, num_classes - 1)), min_size=1, max_size=30))
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=5)))
    log_probabilities = torch.log_softmax(torch.tensor([logit for logit, _ in rows]), dim=1)
    return log_probabilities, torch.tensor([label for _, label in rows]), [0, *cuts, len(rows)]


@given(partitions())
def test_the_tallies_of_any_parts_add_up_to_the_tally_of_the_whole(partition):
    log_probabilities, labels, edges = partition
    whole = tally(metrics.predictions(log_probabilities, labels))

    parts = [
        tally(metrics.predictions(log_probabilities[low:high], labels[low:high]))
        for low, high in itertools.pairwise(edges)
    ]
    total = functools.reduce(operator.add, parts)

    for name in ("confusion", "bin_count", "bin_correct", "top2_correct"):
        np.testing.assert_array_equal(getattr(total, name), getattr(whole, name))
    for name in ("bin_confidence", "log_loss_sum", "brier_sum"):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    assert total.num_examples == len(labels)
    assert dataclasses.astuple(metrics.rates(total)) == pytest.approx(
        dataclasses.astuple(metrics.rates(whole)), rel=1e-12, abs=1e-12
    )


def test_a_tally_is_the_same_bits_every_time():
    log_probabilities, labels = random_example(1000)
    first, second = (tally(metrics.predictions(log_probabilities, labels)) for _ in range(2))
    assert first.log_loss_sum == second.log_loss_sum
    assert first.brier_sum == second.brier_sum
    assert first.bin_confidence.tobytes() == second.bin_confidence.tobytes()
