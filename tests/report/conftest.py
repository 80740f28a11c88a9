"""An evaluation that the tests of `query` ask."""

import pytest

from tests.support.queried import Evaluated
from tests.support.report_evaluations import evaluate_grid


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    storage = str(tmp_path_factory.mktemp("storage"))
    settings = {"epochs": 1, "learning_rate": 0.01, "weight_decay": [0.0, 1e-2]}
    return Evaluated(storage, evaluate_grid(storage, settings, shard_size=100))
