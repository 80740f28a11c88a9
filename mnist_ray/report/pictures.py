"""The images of a report, with the runs' predictions."""

import base64
import struct
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mnist_ray.evaluation.gallery import HARDEST, SHOWN
from mnist_ray.report import limits
from mnist_ray.results.evaluation_folder import EvaluationFolder


def read_pictures(folder: EvaluationFolder, chosen: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns the images of each reason, in their order.

    Keeps a hardest image only if more than half of the runs get it wrong: others may be hard for only one setting.

    Args:
      chosen: the runs of the chosen setting; their votes are counted separately.

    Returns:
      Reason -> rows of the images table, each with source (a data URI), is_large (more pixels than its place on the
      page), votes (the most common predicted classes with
      their number of runs), num_other_votes (runs that predict none of these), label_probability (mean over the runs)
      and chosen (the class that most of the chosen runs predict).
    """
    images = folder.rows("images")
    votes = _votes(folder, sorted({row["example_index"] for row in images}))
    by_reason: dict[str, list[dict[str, Any]]] = {reason: [] for reason in SHOWN}
    for row in images:
        if row["reason"] == HARDEST and 2 * row["num_runs_wrong"] <= len(folder.runs):
            continue
        source = "data:image/png;base64," + base64.b64encode(row["image"]).decode()
        # A PNG's width and height are in its first chunk.
        is_large = max(struct.unpack(">2I", row["image"][16:24])) > limits.PICTURE_SIDE
        said = _said(votes[row["example_index"]], chosen)
        by_reason[row["reason"]].append({**row, **said, "source": source, "is_large": is_large})
    return by_reason


def _votes(folder: EvaluationFolder, examples: Sequence[int]) -> dict[int, list[tuple[str, str, float]]]:
    """Returns example -> run, predicted class and probability of the true class, for every run."""
    columns = ["example_index", "run", "predicted_label_name", "label_probability"]
    wanted = pa.array(examples, pa.int64())
    votes: dict[int, list[tuple[str, str, float]]] = {example: [] for example in examples}
    for part in folder.parts("predictions", columns=columns):
        rows = part.select(columns).filter(pc.is_in(part["example_index"], wanted))
        for example, run, name, probability in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            votes[example].append((run, name, probability))
    return votes


def _said(votes: Sequence[tuple[str, str, float]], chosen: Sequence[str]) -> dict[str, Any]:
    of_chosen = Counter(name for run, name, _ in votes if run in chosen)
    most_common = Counter(name for _, name, _ in votes).most_common(limits.VOTES)
    return {
        "votes": most_common,
        "num_other_votes": len(votes) - sum(count for _, count in most_common),
        "label_probability": fmean(probability for *_, probability in votes),
        "chosen": of_chosen.most_common(1)[0][0],
    }
