"""The text of an evaluation by class."""

import numpy as np
import pytest
import sklearn.metrics

from mnist_ray.report.classification import classification_report


# In the second case classes 3 and 4 never occur; class 4 is never predicted either, nor is class 2, which occurs.
@pytest.mark.parametrize(("occurring", "predictable"), [((0, 1, 2, 3, 4), (0, 1, 2, 3, 4)), ((0, 1, 1, 2), (0, 1, 3))])
@pytest.mark.parametrize("names", [["0", "1", "2", "3", "4"], ["T-shirt/top", "a much longer class name", *"xyz"]])
def test_the_classification_report_is_the_text_that_scikit_learn_prints(
    occurring: tuple[int, ...], predictable: tuple[int, ...], names: list[str]
) -> None:
    generator = np.random.default_rng(1)
    label = generator.choice(occurring, 400)
    is_right = (generator.random(400) < 0.5) & np.isin(label, predictable)
    predicted = np.where(is_right, label, generator.choice(predictable, 400))
    classes = range(len(names))
    expected = sklearn.metrics.classification_report(
        label, predicted, labels=classes, target_names=names, zero_division=0
    )
    confusion = sklearn.metrics.confusion_matrix(label, predicted, labels=classes)
    assert classification_report(confusion, names) == expected


def test_a_classification_report_of_three_examples() -> None:
    assert classification_report(np.array([[1, 0], [1, 1]]), ["cat", "dog"]) == (
        "              precision    recall  f1-score   support\n"
        "\n"
        "         cat       0.50      1.00      0.67         1\n"
        "         dog       1.00      0.50      0.67         2\n"
        "\n"
        "    accuracy                           0.67         3\n"
        "   macro avg       0.75      0.75      0.67         3\n"
        "weighted avg       0.83      0.67      0.67         3\n"
    )
