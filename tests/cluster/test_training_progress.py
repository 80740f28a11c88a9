from pathlib import Path

from mnist_ray.cluster.trainer import _progress
from mnist_ray.config.settings import TrainConfig
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from mnist_ray.tracking.trackers import track


# That a thread ends with an error fails a test.
def test_a_history_that_can_not_be_read_is_not_shown_and_costs_nothing_else(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    with track((), storage, experiment="e") as tracking:
        with _progress(RunFolder(storage, "a"), TrainConfig(), tracking, shown=0):
            storage.write_bytes("runs/a/history.parquet", b"damaged")
        assert storage.read_bytes("runs/a/history.parquet") == b"damaged"
