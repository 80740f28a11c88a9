"""Readers of what trackers hold: MLflow's client and TensorBoard's own back end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from mnist_ray.storage.storage import open_storage
from mnist_ray.tracking.seen_run import mlflow_store


def hparams_page(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Returns the rows of TensorBoard's HPARAMS page: run -> column -> value."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    asked, request = RequestContext(), api_pb2.ListSessionGroupsRequest(slice_size=100)
    request.allowed_statuses[:] = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING]
    experiment = context.experiment_from_metadata(
        asked, "", True, context.hparams_metadata(asked, ""), context.hparams_from_data_provider(asked, "", 0)
    )
    request.col_params.extend(api_pb2.ColParams(hparam=info.name) for info in experiment.hparam_infos)
    request.col_params.extend(api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos)
    rows: dict[str, Mapping[str, Any]] = {}
    for group in Handler(asked, context, "", request).run().session_groups:
        (session,) = group.sessions
        metrics = {value.name.tag: value.value for value in session.metric_values}
        assert session.name not in rows
        rows[session.name] = {**MessageToDict(group)["hparams"], **metrics}
    return rows


def client_of(root: Path) -> MlflowClient:
    """Returns a client of MLflow's own store in a storage."""
    return MlflowClient(mlflow_store(open_storage(str(root))))


def runs_in(client: MlflowClient, experiment: str, filter_string: str = "") -> list[Run]:
    """Returns the MLflow runs of an experiment."""
    known = client.get_experiment_by_name(experiment)
    assert known is not None
    return list(client.search_runs([known.experiment_id], filter_string))
