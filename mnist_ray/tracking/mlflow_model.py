"""Logs the kept network of a run to MLflow as a model, which `mlflow.pyfunc.load_model` loads."""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Run
from mlflow.tracking import MlflowClient

from mnist_ray.errors import ConfigError
from mnist_ray.export.formats import onnx_of_probabilities
from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.tracking.seen_run import SeenRun

NAME = "model"
_NEEDS = ("onnx", "onnxscript")
# A model that is incomplete for longer has no writer any more.
_WRITING_S = 3600


class Models:
    """Writes models in MLflow's ONNX flavour; a network that can't be written costs one line."""

    def __init__(self, client: MlflowClient, say: Callable[[str], None]) -> None:
        self._client, self._say = client, say
        self._said: set[str] = set()
        self._own: list[tuple[Run, Checkpoint]] = []

    def log(self, run: Run, seen: SeenRun) -> None:
        """Writes the best network of a finished run, unless MLflow has it; the user's own network at the end."""
        if not seen.is_finished or self.model_id(run):
            return
        if any(importlib.util.find_spec(name) is None for name in _NEEDS):
            self._say_once(f"--log mlflow: models need {' and '.join(_NEEDS)}: pip install 'mnist-ray[onnx]'")
            return
        checkpoint = seen.folder.best()
        if checkpoint.config.is_own_network:
            self._own.append((run, checkpoint))
        else:
            self._log(run, checkpoint, onnx_of_probabilities(checkpoint, what="--log mlflow"))

    def close(self) -> None:
        """Writes the user's own networks: their export swaps the process's streams, and training is over now."""
        for run, checkpoint in self._own:
            try:
                content = onnx_of_probabilities(checkpoint, what="--log mlflow")
            except ConfigError as error:
                self._say_once(str(error))
            else:
                self._log(run, checkpoint, content)

    def model_id(self, run: Run) -> str | None:
        """Returns the ID of a run's model, None if it has none; deletes those that killed writers left incomplete."""
        ready = []
        for model in self._client.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}' AND name = '{NAME}'"
        ):
            if model.status == LoggedModelStatus.READY:
                ready.append(model)
            elif model.creation_timestamp < 1000 * (time.time() - _WRITING_S):
                self._client.delete_logged_model(model.model_id)
        return str(min(ready, key=lambda model: model.last_updated_timestamp).model_id) if ready else None

    def _log(self, run: Run, checkpoint: Checkpoint, content: bytes) -> None:
        # Takes seconds to import, and not all runs get this far.
        import mlflow.onnx
        import onnx
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        run_id, classes = run.info.run_id, checkpoint.document["class_names"]
        kind = np.dtype(np.float32)
        signature = ModelSignature(
            # An array, not a dictionary with one, is what a model with an unnamed input takes.
            Schema([TensorSpec(kind, (-1, *checkpoint.image_shape))]),
            Schema([TensorSpec(kind, (-1, len(classes)), "probabilities")]),
        )
        model = self._client.create_logged_model(run.info.experiment_id, name=NAME, source_run_id=run_id)
        with tempfile.TemporaryDirectory(prefix="mnist-ray-mlflow-") as folder:
            path = Path(folder, NAME)
            mlflow.onnx.save_model(
                onnx.load_from_string(content), str(path), signature=signature, save_as_external_data=False,
                # Else MLflow finds them out in a new process.
                pip_requirements=mlflow.onnx.get_default_pip_requirements(),
                metadata={"run": checkpoint.run, "class_names": classes},
                mlflow_model=Model(
                    artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=run_id,
                    model_id=model.model_id,
                ),
            )  # fmt: skip
            self._client.log_model_artifacts(model.model_id, str(path))
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        if self.model_id(run) == model.model_id:
            self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=checkpoint.document["epoch"])])
        else:
            # Another process was first.
            self._client.delete_logged_model(model.model_id)

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)
