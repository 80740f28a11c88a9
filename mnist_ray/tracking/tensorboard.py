"""Logs runs to TensorBoard: <storage>/tensorboard/<run>/, one event file per epoch.

Each file appears whole under a name with its epoch, so the names show which epochs are missing, on S3 too. A running
TensorBoard shows a new file at its next reload.
"""

import hashlib
import io
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, text

from mnist_ray.storage.storage import Storage
from mnist_ray.tracking.seen_run import METRICS, TENSORBOARD_FOLDER, SeenRun

# File 0 holds the settings.
_SETTINGS = 0
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(?P<epoch>\d{6})\.(?P<content>[0-9a-f]{12})")


class TensorBoard:
    """Writes event files into the storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._written: dict[str, set[int]] = {}

    def write(self, seen: SeenRun) -> None:
        """Writes the settings and the epochs that have no file yet."""
        run, content = seen.folder.run, _content_id(seen.document)
        written = self._written.setdefault(run, self._find(run, content))
        files = {_SETTINGS: _settings(seen.document)}
        for row in seen.history:
            values = [Summary.Value(tag=name, simple_value=getattr(row, name)) for name in METRICS]
            files[row.epoch] = [Summary(value=values)]
        for epoch in sorted(files.keys() - written):
            name = f"events.out.tfevents.{epoch:06d}.{content}"
            self._storage.write_bytes(f"{TENSORBOARD_FOLDER}/{run}/{name}", _event_file(epoch, files[epoch]))
            written.add(epoch)

    def close(self) -> None:
        """Does nothing: TensorBoard has no status."""

    def _find(self, run: str, content: str) -> set[int]:
        """Returns the epochs that have a file; deletes an earlier run's folder of this name, if without other files."""
        names = [entry.path.rsplit("/", 1)[1] for entry in self._storage.list_files(f"{TENSORBOARD_FOLDER}/{run}")]
        ours = [match for match in map(_EVENT_FILE.fullmatch, names) if match]
        if len(ours) == len(names) and any(match["content"] != content for match in ours):
            self._storage.delete_folder(f"{TENSORBOARD_FOLDER}/{run}")
            return set()
        return {int(match["epoch"]) for match in ours if match["content"] == content}


def _content_id(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{document['config_hash']} {document['data_sha256']}".encode()).hexdigest()[:12]


def _settings(document: Mapping[str, Any]) -> list[Summary]:
    """Returns the content of the HPARAMS and TEXT pages."""
    config = {name: _plain(value) for name, value in document["config"].items()}
    kept = {name: document[name] for name in ("config", "config_hash", "data_sha256")}
    indented = "\n".join(f"    {line}" for line in json.dumps(kept, indent=1).splitlines())
    return [*hparams(config, {"val_accuracy": 0.0, "val_loss": 0.0}), text("config", indented)]


def _plain(value: object) -> bool | int | float | str:
    """Returns a setting in a type that HPARAMS accepts."""
    if isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value)


def _event_file(epoch: int, summaries: Sequence[Summary]) -> bytes:
    now = time.time()
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    events += [Event(wall_time=now, step=epoch, summary=summary) for summary in summaries]
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()
