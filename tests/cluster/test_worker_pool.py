"""The pool of workers that prediction and evaluation share, with small work on one Ray head."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from ray import cloudpickle
from ray.exceptions import RayTaskError

from mnist_ray.cluster.resources import Needs
from mnist_ray.cluster.worker_pool import results_of_workers
from mnist_ray.config.placement import ANYWHERE
from mnist_ray.config.requirements import JOB_VARIABLE
from mnist_ray.errors import CheckpointError, DataError, RunFailedError, StorageError
from mnist_ray.storage.storage import open_storage
from tests.support.processes import descendants
from tests.support.ray_head import RayHead

WAIT_S = 60

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# The workers of the head don't have this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def folder(shared_head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the workers leave notes; the test is a job on the head."""
    monkeypatch.setenv("RAY_ADDRESS", shared_head.gcs_address)
    monkeypatch.setenv(JOB_VARIABLE, "1")
    # A job leaves its folder; the tests after it need theirs.
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(
    folder: Path, work: Callable[[Path, int], list[object]], count: int, spans: Iterator[tuple[int, int]] | None = None
) -> list[object]:
    """Returns what two workers make of items 0 to count - 1."""
    numbered = spans or ((10 * item, item) for item in range(count))
    needs = Needs("the job", open_storage(str(folder)), num_workers=2)
    with results_of_workers(partial(load, folder, work), numbered, needs, ANYWHERE) as found:
        return list(found)


# What the workers do.


def load(folder: Path, work: Callable[[Path, int], list[object]]) -> Callable[[int], list[object]]:
    note(folder / f"loaded-{os.getpid()}")
    return partial(work, folder)


def note(path: Path) -> int:
    """Adds a letter to a file and returns how many it has."""
    with open(path, "a") as file:
        file.write("x")
    return path.stat().st_size


def await_file(path: Path, seconds: float = WAIT_S) -> bool:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    return path.exists()


def double(folder: Path, item: int) -> list[object]:
    return [item, item]


def double_once_two_have_loaded(folder: Path, item: int) -> list[object]:
    deadline = time.monotonic() + WAIT_S
    while len(list(folder.glob("loaded-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return [item, item]


def fail_at_7(folder: Path, item: int) -> list[object]:
    if item == 7:
        raise StorageError("storage='x': can't be written: the disk is full")
    return [item]


def fail_with_a_bug(folder: Path, item: int) -> list[object]:
    raise ZeroDivisionError(f"item {item}")


def die_at_3(times: int, folder: Path, item: int) -> list[object]:
    if item == 3 and note(folder / "died") <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return [item]


def linger_over_0(folder: Path, item: int) -> list[object]:
    """Takes as long over 0 as the other worker does over all of the window, 15 being its last."""
    note(folder / f"begun-{item}")
    if item == 0:
        return [await_file(folder / "begun-15"), await_file(folder / "begun-16", seconds=0.3)]
    return [item]


def never_end(folder: Path, item: int) -> list[object]:
    note(folder / "begun")
    time.sleep(1000)
    return []


def die_while_loading(folder: Path) -> Callable[[int], list[object]]:
    note(folder / "died")
    os.kill(os.getpid(), signal.SIGKILL)
    return partial(double, folder)


def fail_while_loading() -> Callable[[int], list[object]]:
    raise CheckpointError("run 'a': damaged")


def test_results_are_in_order_and_each_worker_loads_once(folder: Path) -> None:
    assert results(folder, double_once_two_have_loaded, 40) == [item for item in range(40) for _ in range(2)]
    assert [path.stat().st_size for path in folder.glob("loaded-*")] == [1, 1]


def test_no_more_workers_are_started_than_there_are_spans(folder: Path) -> None:
    assert results(folder, double, 1) == [0, 0]
    assert len(list(folder.glob("loaded-*"))) == 1
    assert results(folder, double, 0) == []


def test_while_one_takes_long_the_other_goes_on_to_the_end_of_the_window_and_no_further(folder: Path) -> None:
    assert results(folder, linger_over_0, 40) == [True, False, *range(1, 40)]


@pytest.mark.fault
def test_the_span_of_a_lost_worker_goes_to_another(folder: Path) -> None:
    assert results(folder, partial(die_at_3, 3), 40) == list(range(40))
    # A death right after the span before counts for that one if its results are lost, too.
    assert (folder / "died").stat().st_size >= 4


@pytest.mark.fault
def test_a_span_that_ends_four_workers_ends_the_job_and_is_named(folder: Path) -> None:
    with pytest.raises(RunFailedError) as error:
        results(folder, partial(die_at_3, 5), 40)
    assert str(error.value) == (
        "the job: shard 30: its worker died 4 times; use fewer --num-workers if memory is short, or a smaller "
        "--shard-size to find the image that ends a process; Ray says: The actor died unexpectedly before finishing "
        "this task."
    )
    # A death right after the span before counts for that one if its results are lost, too.
    assert (folder / "died").stat().st_size >= 4


@pytest.mark.fault
def test_workers_that_die_while_they_load_end_the_job(folder: Path) -> None:
    needs = Needs("the job", open_storage(str(folder)), num_workers=1)
    with (
        pytest.raises(RunFailedError, match=r"^the job: loading the networks: its worker died 4 times; use fewer"),
        results_of_workers(partial(die_while_loading, folder), [(0, 0)], needs, ANYWHERE) as found,
    ):
        list(found)
    # A death right after the span before counts for that one if its results are lost, too.
    assert (folder / "died").stat().st_size >= 4


def test_an_error_on_a_worker_arrives_as_it_was_raised(folder: Path) -> None:
    with pytest.raises(StorageError) as error:
        results(folder, fail_at_7, 40)
    assert (type(error.value), str(error.value)) == (
        StorageError,
        "storage='x': can't be written: the disk is full",
    )
    needs = Needs("the job", open_storage(str(folder)), num_workers=2)
    with (
        pytest.raises(CheckpointError, match=r"^run 'a': damaged$"),
        results_of_workers(fail_while_loading, [(0, 0)], needs, ANYWHERE) as found,
    ):
        list(found)


def test_a_bug_on_a_worker_keeps_the_workers_traceback(folder: Path) -> None:
    with pytest.raises(RayTaskError, match=r"in fail_with_a_bug\n(.*\n)+ZeroDivisionError: item 0"):
        results(folder, fail_with_a_bug, 1)


@pytest.mark.parametrize("error", [DataError("images=x: damaged"), KeyboardInterrupt()])
def test_an_error_here_ends_the_workers_in_their_work(folder: Path, shared_head: RayHead, error: BaseException) -> None:
    def spans() -> Iterator[tuple[int, int]]:
        yield 0, 0
        yield 1, 1
        assert await_file(folder / "begun")
        raise error

    with pytest.raises(type(error)):
        results(folder, never_end, 2, spans())
    deadline = time.monotonic() + WAIT_S
    while descendants(shared_head.pid, title=b"PoolWorker"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
