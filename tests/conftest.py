import os
import signal
from pathlib import Path

import hypothesis
import pytest
import torch

from mnist_ray.storage import retries
from tests.support.blank_charts import blank_charts  # noqa: F401  (a fixture of the tests of reports)
from tests.support.ray_jobs import SHARED_HEAD, shared_head  # noqa: F401  (the head of the Ray tests)
from tests.support.s3_fixtures import _read_botocores_files_once, s3_server, s3_uri  # noqa: F401  (fixtures of S3)

# How long an example takes, to run or to be made, is no property of the code: on a busy machine it is anything.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

_USUAL_FOLDER = Path(__file__).parents[2] / "shared" / "mnist"
_FIRST_FILE = "train-images-idx3-ubyte.gz"
_FILES_OF_RAY: set[Path] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files with a Ray first: they take longest, and of two processes none may wait long for the other."""
    _FILES_OF_RAY.update(item.path for item in items if item.get_closest_marker("ray"))
    items.sort(key=lambda item: item.path not in _FILES_OF_RAY)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path not in _FILES_OF_RAY:
        SHARED_HEAD.close()


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with the four real MNIST files."""
    folder = Path(os.environ.get("MNIST_RAY_DATA") or _USUAL_FOLDER)
    if not (folder / _FIRST_FILE).is_file():
        pytest.skip(f"the real MNIST files are not in {folder}: set MNIST_RAY_DATA to the folder that has them")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Bits are promised for one thread, and on a busy machine two are many times slower."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell's background job starts with SIGINT ignored, and so would all that the tests start and interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        # So does a job of nohup with SIGHUP. What the tests start doesn't inherit a handler; they themselves go on.
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(autouse=True, scope="session")
def _short_pauses() -> None:
    """Requests are repeated as often as ever, but ten attempts pause for two seconds in all instead of forty."""
    retries._FIRST_PAUSE_S = 0.005
