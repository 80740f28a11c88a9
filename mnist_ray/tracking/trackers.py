"""Logs stored runs to external trackers during training.

Tracker.write is idempotent: it writes only what the tracker lacks, so no epoch is logged twice, and the next command
completes a run after an interruption or a failure of the server. Nothing here changes a run.
"""

import importlib.util
import os
import shlex
import textwrap
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from mnist_ray.config.settings import TrainConfig
from mnist_ray.errors import ConfigError
from mnist_ray.results.run_documents import config_in, read_run_document
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import Storage, without_secrets
from mnist_ray.text.escape import printable, say_line
from mnist_ray.tracking.logged import Record
from mnist_ray.tracking.seen_run import TENSORBOARD_FOLDER, SeenEvaluation, SeenRun, mlflow_store
from mnist_ray.training.data import data_settings

# Extra to install -> modules that it must provide.
_EXTRAS: Mapping[str, Sequence[str]] = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}

# Give up an unreachable server after seconds, not minutes; send no telemetry.
_MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Standard output is for a command's results.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_PATIENCE_S = 10.0


class Tracker(Protocol):
    """A destination for runs."""

    def write(self, seen: SeenRun) -> None:
        """Writes the parts of a run that the tracker lacks."""

    def write_evaluation(self, record: Record, seen: SeenEvaluation) -> None:
        """Writes a run's part of an evaluation, if the tracker lacks it, to where a record says that the run is."""

    def write_page(self, record: Record, evaluation: str, uri: str, page: bytes) -> None:
        """Writes the page of an evaluation to where a record says that its grid, or its only run, is."""

    def close(self) -> None:
        """Marks incompletely written runs as interrupted, if the tracker has a status."""


def check_trackers(names: Sequence[str], storage: Storage, environ: Mapping[str, str] = os.environ) -> None:
    """Checks that trackers can be used.

    Raises:
      ConfigError: a package is missing, or MLflow has no place for its store.
    """
    for name in names:
        if missing := [module for module in _EXTRAS[name] if importlib.util.find_spec(module) is None]:
            raise ConfigError(f"--log {name}: needs {' and '.join(missing)}: pip install 'mnist-ray[{name}]'")
    if "mlflow" in names and "?" in storage.uri and not environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(f"--log mlflow: storage={storage.uri!r}: MLflow's own store can't lie below a '?'; rename it")
    if "mlflow" in names and not storage.is_local and not environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            "--log mlflow: MLflow's own store is a SQLite file, which S3 can't hold; set MLFLOW_TRACKING_URI to a "
            "tracking server, or use a local --storage"
        )


def track(
    names: Sequence[str],
    storage: Storage,
    *,
    grid: str | None = None,
    samples: Mapping[TrainConfig, bytes] | None = None,
    say: Callable[[str], None] | None = None,
) -> "AbstractContextManager[Tracking]":
    """Returns a context that writes runs to trackers; without trackers it does nothing.

    Args:
      names: checked names of TRACKERS.
      grid: name of the grid that the runs belong to.
      samples: data settings -> pictures of the data, PNG.
      say: shows a line; on stderr by default.
    """
    show = say or say_named
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    openers = {name: opener(name, storage, uri=uri, grid=grid, say=show) for name in dict.fromkeys(names)}
    tracking = Tracking(openers, storage, samples=samples, say=show)
    return tracking if names else nullcontext(tracking)


def say_named(line: str) -> None:
    """Shows a line on stderr."""
    say_line(f"mnist-ray: {line}")


def reason_of(error: Exception) -> str:
    """Returns why a tracker failed, in a line without secrets."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(printable(without_secrets(reason)), 200, placeholder=" ...")


def how_to_look(names: Sequence[str], storage: Storage, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the command or address that shows each tracker's runs."""
    server = environ.get("MLFLOW_TRACKING_URI")
    commands = {
        "tensorboard": shlex.join(["tensorboard", "--logdir", storage.uri_of(TENSORBOARD_FOLDER)]),
        "mlflow": f"MLflow at {without_secrets(server)}"
        if server
        else shlex.join(["mlflow", "ui", "--backend-store-uri", mlflow_store(storage)]),
    }
    return [commands[name] for name in dict.fromkeys(names)]


def opener(
    name: str, storage: Storage, *, uri: str | None, grid: str | None, say: Callable[[str], None]
) -> Callable[[], Tracker]:
    """Imports a tracker's package and returns its opener: in a thread, the import would race with Ray's of MLflow.

    Args:
      uri: MLflow's tracking URI; None for its own store in the storage.
    """
    if name == "tensorboard":
        from mnist_ray.tracking.tensorboard import TensorBoard

        return partial(TensorBoard, storage)
    for setting, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(setting, value)
    from mnist_ray.tracking.mlflow import MLflow

    return partial(MLflow, storage, uri, grid, say)


class Tracking:
    """Writes runs to trackers in its own thread: training never waits for a server.

    A failed tracker is reported in one line and skipped until the next command.
    """

    def __init__(
        self,
        openers: Mapping[str, Callable[[], Tracker]],
        storage: Storage,
        *,
        samples: Mapping[TrainConfig, bytes] | None = None,
        say: Callable[[str], None],
    ) -> None:
        """Prepares the thread, which entering the context starts; see track.

        Args:
          openers: tracker's name -> function that opens it.
        """
        self._openers, self._storage, self._samples, self._say = openers, storage, samples or {}, say
        self._trackers: dict[str, Tracker] = {}
        self._pending: dict[str, None] = {}
        self._ended = False
        self._news = threading.Condition()
        # A daemon, so the process can exit without waiting for it.
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._news:
            self._ended = True
            self._news.notify()
        # Don't let an interrupted command wait long for a server.
        self._thread.join(None if kind is None else _PATIENCE_S)

    def update(self, runs: Iterable[str]) -> None:
        """Announces that some runs may have changed."""
        with self._news:
            self._pending.update(dict.fromkeys(runs))
            self._news.notify()

    def _work(self) -> None:
        for name, opener in self._openers.items():
            self._attempt(name, partial(self._start, name, opener))
        while (run := self._next()) is not None:
            for name in list(self._trackers):
                self._attempt(name, partial(self._write, run, self._trackers[name]))
        for name in list(self._trackers):
            self._attempt(name, self._trackers[name].close)

    def _start(self, name: str, opener: Callable[[], Tracker]) -> None:
        self._trackers[name] = opener()

    def _next(self) -> str | None:
        """Returns a run that may have changed; None after the end."""
        with self._news:
            self._news.wait_for(lambda: self._pending or self._ended)
            if not self._pending:
                return None
            run = next(iter(self._pending))
            del self._pending[run]
            return run

    def _write(self, run: str, tracker: Tracker) -> None:
        folder = RunFolder(self._storage, run)
        # A worker may not have started this run of a grid yet.
        if self._storage.exists(folder.path("config.json")):
            # Read the status first: a done run has all its epochs.
            status = folder.status()
            document = read_run_document(self._storage, run)
            samples = self._samples.get(data_settings(config_in(document, f"run {run!r}: config.json")))
            tracker.write(SeenRun(folder, document, folder.history(), status, samples))

    def _attempt(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        # No exception of a tracker may harm the run.
        except Exception as error:
            self._trackers.pop(name, None)
            self._say(
                f"--log {name}: training goes on without it, the same command logs what is missing: {reason_of(error)}"
            )
