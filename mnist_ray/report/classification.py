"""Reports an evaluation's confusion table by class: all classes as text, or the most relevant of many.

Counts are confusion matrices, int64 [classes, classes]: rows are true classes, columns predicted ones.
"""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from mnist_ray.evaluation.metrics import class_rates
from mnist_ray.results.evaluation_folder import EvaluationFolder


def report_of_run(folder: EvaluationFolder, run: str) -> str:
    """Returns precision, recall, F1 and support of each class as text, with their averages."""
    (confusion,) = confusions(folder, [[run]])
    return classification_report(confusion, folder.class_names)


def classification_report(confusion: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """Returns the text table of precision, recall, F1 and support in scikit-learn's layout.

    Args:
      confusion: int64 [classes, classes], rows true, columns predicted, of at least one example.
      class_names: one name per class.
    """
    width = max(len(name) for name in (*class_names, "weighted avg"))
    classes = class_rates(confusion)
    num_examples = int(confusion.sum())
    rates_by_class = np.stack((classes.precision, classes.recall, classes.f1))  # [3, classes]
    macro = rates_by_class.mean(axis=1).tolist()
    weighted = ((rates_by_class * classes.support).sum(axis=1) / num_examples).tolist()

    def line(name: str, cells: Sequence[float | None], support: int) -> str:
        texts = [" " * 9 if cell is None else f"{cell:9.2f}" for cell in cells]
        return f"{name:>{width}}  {' '.join(texts)} {support:9d}"

    columns = (classes.precision.tolist(), classes.recall.tolist(), classes.f1.tolist(), classes.support.tolist())
    lines = [
        " ".join([" " * (width + 1), *(f"{title:>9}" for title in ("precision", "recall", "f1-score", "support"))]),
        "",
        *(line(name, cells, support) for name, *cells, support in zip(class_names, *columns, strict=True)),
        "",
        line("accuracy", (None, None, float(confusion.trace()) / num_examples), num_examples),
        line("macro avg", macro, num_examples),
        line("weighted avg", weighted, num_examples),
    ]
    return "\n".join(lines) + "\n"


def confusions(folder: EvaluationFolder, settings: Sequence[Collection[str]]) -> list[NDArray[np.int64]]:
    """Returns the examples by true (row) and predicted class (column) of each setting, int64 [classes, classes].

    Args:
      settings: the runs of each setting, which are summed; a run belongs to at most one setting.
    """
    size = len(folder.class_names)
    matrices = np.zeros((len(settings) + 1, size, size), dtype=np.int64)
    # Runs of no setting go into the last matrix.
    places = {run: place for place, runs in enumerate(settings) for run in runs}
    for batch in folder.batches("confusion", columns=["run", "label", "predicted_label", "count"]):
        runs = batch["run"]
        setting = np.array([places.get(run, len(settings)) for run in runs.dictionary.to_pylist()], dtype=np.int64)
        count = batch["count"].to_numpy()
        some = np.flatnonzero(count)
        cell = batch["label"].to_numpy()[some], batch["predicted_label"].to_numpy()[some]
        np.add.at(matrices, (setting[runs.indices.to_numpy()[some]], *cell), count[some])
    return list(matrices[:-1])


def frequent_mistakes(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns every kind of mistake, the most frequent first, then by true and by predicted class.

    Returns:
      int64 [mistakes, 3]: true class, predicted class, count.
    """
    label, predicted = np.nonzero(counts)
    is_mistake = label != predicted
    mistakes: NDArray[np.int64] = np.column_stack((label, predicted, counts[label, predicted]))[is_mistake]
    return mistakes[np.argsort(-mistakes[:, 2], kind="stable")]


def confused_classes(counts: NDArray[np.int64], most: int) -> list[int]:
    """Returns the classes of the most frequent mistakes, then the first other classes, up to a number and sorted."""
    in_order = np.concatenate((frequent_mistakes(counts)[:, :2].ravel(), np.arange(len(counts))))
    _, first = np.unique(in_order, return_index=True)
    return sorted(in_order[np.sort(first)[:most]].tolist())


def weakest_classes(counts: NDArray[np.int64], most: int) -> list[int]:
    """Returns all classes in order or, if there are too many, the classes with the lowest F1, the lowest first.

    Classes without examples come last: their F1 is meaningless.
    """
    if len(counts) <= most:
        return list(range(len(counts)))
    rates = class_rates(counts)
    return list(np.lexsort((rates.f1, rates.support == 0))[:most].tolist())
