"""The images of a report, with what the runs say of them."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mnist_ray.evaluation.gallery import HARDEST, SHOWN
from mnist_ray.report import limits
from mnist_ray.results.evaluation_folder import EvaluationFolder


def read_pictures(folder: EvaluationFolder, chosen: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns the images of each reason, in their order.

    Of the hardest only those that more than half of the runs get wrong: what fewer do may be hard for one setting.

    Args:
      folder: the evaluation.
      chosen: the runs of the chosen setting; their votes are counted apart.

    Returns:
      Reason -> rows of the images table, each with source (a data URI), votes (the commonest predicted classes with
      their number of runs), num_other_votes (runs that predict none of these), label_probability (mean over the runs)
      and chosen (what most of the chosen runs say).
    """
    images = folder.rows("images")
    votes = _votes(folder, sorted({row["example_index"] for row in images}))
    found: dict[str, list[dict[str, Any]]] = {reason: [] for reason in SHOWN}
    for row in images:
        if row["reason"] == HARDEST and 2 * row["num_runs_wrong"] <= len(folder.runs):
            continue
        found[row["reason"]].append({**row, **_said(votes[row["example_index"]], chosen), "source": _source(row)})
    return found


def _votes(folder: EvaluationFolder, examples: Sequence[int]) -> dict[int, list[tuple[str, str, float]]]:
    """Returns run, predicted class and probability of the true class, of every run, for some examples."""
    columns = ["example_index", "run", "predicted_label_name", "label_probability"]
    wanted = pa.array(examples, pa.int64())
    found: dict[int, list[tuple[str, str, float]]] = {example: [] for example in examples}
    for part in folder.parts("predictions", columns=columns):
        rows = part.select(columns).filter(pc.is_in(part["example_index"], wanted))
        for example, run, name, probability in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            found[example].append((run, name, probability))
    return found


def _said(votes: Sequence[tuple[str, str, float]], chosen: Sequence[str]) -> dict[str, Any]:
    of_chosen = Counter(name for run, name, _ in votes if run in chosen)
    shown = Counter(name for _, name, _ in votes).most_common(limits.VOTES)
    return {
        "votes": shown,
        "num_other_votes": len(votes) - sum(count for _, count in shown),
        "label_probability": fmean(probability for *_, probability in votes),
        "chosen": of_chosen.most_common(1)[0][0],
    }


def _source(row: Mapping[str, Any]) -> str:
    return "data:image/png;base64," + base64.b64encode(row["image"]).decode()
