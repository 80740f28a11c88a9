"""Logs runs to TensorBoard: <storage>/tensorboard/<run>/, one event file per epoch.

Each file appears whole under a name with its part: an epoch, the best epoch or an evaluation; so the names show which
are missing, on S3 too. A running TensorBoard shows a new file at its next reload, if its name comes after those that it
has read.
"""

import hashlib
import io
import json
import re
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, text

from mnist_ray.storage.storage import Storage
from mnist_ray.tracking import pictures
from mnist_ray.tracking.logged import Record, claim_record
from mnist_ray.tracking.seen_run import METRICS, SUMMARY, TENSORBOARD_FOLDER, SeenEvaluation, SeenRun

# Holds the settings; the epochs follow.
_SETTINGS = "000000"
_BEST = "best"
_EVENT_FILE = re.compile(
    rf"events\.out\.tfevents\.(?P<part>\d{{6}}|{_BEST}|evaluation-\d{{4}}-(own|other)-[0-9a-f]{{12}})\.(?P<content>[0-9a-f]{{12}})"
)
_RGB = 3


class TensorBoard:
    """Writes event files into the storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._written: dict[str, set[str]] = {}

    def write(self, seen: SeenRun) -> None:
        """Writes the settings and the epochs that have no file yet, and the best epoch of a done run."""
        run, content = seen.folder.run, _digest(seen.document["config_hash"], seen.document["data_sha256"])
        folder = f"{TENSORBOARD_FOLDER}/{run}"
        if run not in self._written:
            claim_record(self._storage, seen.folder.path(), {"tracker": "tensorboard", "folder": folder})
            self._written[run] = self._find(folder, content)
        files = {_SETTINGS: (0, _settings(seen.document, evaluation="", page=""))}
        for row in seen.history:
            values = _scalars({name: getattr(row, name) for name in METRICS})
            if row.epoch == 1 and seen.samples:
                values.append(_picture("samples", seen.samples))
            files[f"{row.epoch:06d}"] = (row.epoch, [Summary(value=values)])
        if seen.is_finished:
            best = seen.best_metrics()
            files[_BEST] = (int(best["best_epoch"]), [Summary(value=_scalars(best))])
        for part in sorted(files.keys() - self._written[run]):
            self._write(folder, part, content, *files[part])
            self._written[run].add(part)

    def write_evaluation(self, record: Record, seen: SeenEvaluation) -> None:
        """Writes the metrics of an evaluation and its confusion matrix, once, and where its page is."""
        folder, content = record["folder"], _digest(seen.document["config_hash"], seen.document["data_sha256"])
        written = self._find(folder, content)
        if not written:
            return  # Somebody has deleted the folder.
        evaluations = sorted(part for part in written if part.startswith("evaluation-"))
        ending = f"-{'own' if seen.is_of_run else 'other'}-{_digest(seen.name)}"
        if not any(part.endswith(ending) for part in evaluations):
            name = "confusion" if seen.is_of_run else f"{seen.name}/confusion"
            values = [*_scalars(seen.metrics), _picture(name, pictures.confusion(seen.confusion, seen.class_names))]
            evaluations.append(f"evaluation-{len(evaluations) + 1:04d}{ending}")
            self._write(folder, evaluations[-1], content, seen.epoch, [Summary(value=values)])
        # HPARAMS shows the last one of the run's own test split.
        if seen.is_of_run and [part for part in evaluations if "-own-" in part][-1].endswith(ending):
            settings = _settings(seen.document, evaluation=seen.name, page=seen.page or "")
            self._write(folder, _SETTINGS, content, 0, settings)

    def write_page(self, record: Record, evaluation: str, uri: str, page: bytes) -> None:
        """Does nothing: TensorBoard shows no pages."""

    def close(self) -> None:
        """Does nothing: TensorBoard has no status."""

    def _write(self, folder: str, part: str, content: str, step: int, summaries: Sequence[Summary]) -> None:
        self._storage.write_bytes(f"{folder}/events.out.tfevents.{part}.{content}", _event_file(step, summaries))

    def _find(self, folder: str, content: str) -> set[str]:
        """Returns the parts that have a file; deletes an earlier run's folder of this name, if without other files."""
        names = [entry.path.rsplit("/", 1)[1] for entry in self._storage.list_files(folder)]
        ours = [match for match in map(_EVENT_FILE.fullmatch, names) if match]
        if len(ours) == len(names) and any(match["content"] != content for match in ours):
            self._storage.delete_folder(folder)
            return set()
        return {match["part"] for match in ours if match["content"] == content}


def _digest(*facts: str) -> str:
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:12]


def _settings(document: Mapping[str, Any], *, evaluation: str, page: str) -> list[Summary]:
    """Returns the content of the HPARAMS and TEXT pages."""
    config = {name: _plain(value) for name, value in document["config"].items()}
    kept = {name: document[name] for name in ("config", "config_hash", "data_sha256")}
    indented = "\n".join(f"    {line}" for line in json.dumps(kept, indent=1).splitlines())
    facts = {**config, "evaluation": evaluation, "report": page}
    return [*hparams(facts, dict.fromkeys(SUMMARY, 0.0)), text("config", indented)]


def _scalars(values: Mapping[str, float]) -> list[Summary.Value]:
    return [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]


def _picture(name: str, png: bytes) -> Summary.Value:
    # A PNG's width and height are in its first chunk.
    width, height = struct.unpack(">2I", png[16:24])
    image = Summary.Image(width=width, height=height, colorspace=_RGB, encoded_image_string=png)
    return Summary.Value(tag=name, image=image)


def _plain(value: object) -> bool | int | float | str:
    """Returns a setting in a type that HPARAMS accepts."""
    if isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value)


def _event_file(step: int, summaries: Sequence[Summary]) -> bytes:
    now = time.time()
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    events += [Event(wall_time=now, step=step, summary=summary) for summary in summaries]
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()
