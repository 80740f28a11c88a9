"""Calls that start a Ray: in a notebook's kernel, in a script, and where there is a Ray already."""

import glob
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kernel import kernel
from tests.support.processes import descendants, wait_until_gone

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = """
import ray, mnist_ray
call = dict(dataset="digits", epochs=2, num_workers=2, name="two")
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
try:
    mnist_ray.train(**call)
except mnist_ray.MnistRayError as error:
    print(error)
print(ray.is_initialized(), mnist_ray.train(dataset="digits", epochs=1, name="one").already_done)
ray.shutdown()
print(mnist_ray.train(**call), ray.is_initialized())
"""


@pytest.mark.series
def test_a_script_with_a_ray_of_its_own_is_refused_and_without_it_needs_no_guard(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "Ray: this program has one already, and mnist-ray brings its own; call ray.shutdown() first",
        "True False",
        f"Run(name='two', storage='{tmp_path}/results', code=(), already_done=False) False",
    ], done.stderr


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.series)])
def test_the_interrupt_button_ends_a_call_with_its_workers_and_the_same_cell_goes_on(
    num_workers: int, tmp_path: Path
) -> None:
    cell = f"mnist_ray.train(dataset='digits', epochs=400, num_workers={num_workers}, name='a')"
    with kernel(tmp_path) as book:
        assert book.run("import mnist_ray").error is None

        def has_begun() -> list[str]:
            return glob.glob(f"{tmp_path}/results/runs/a/checkpoints/epoch-0002/checkpoint.json")

        stopped = book.run(cell, interrupt_when=has_begun)
        assert (stopped.streams, stopped.error) == ("", "KeyboardInterrupt")
        wait_until_gone(lambda: descendants(book.pid, title=b"raylet"))
        ended = book.run(cell)
        assert (ended.streams, ended.error) == ("", None)
        assert ended.value == f"Run(name='a', storage='{tmp_path}/results', code=(), already_done=False)"
        assert book.run("len(mnist_ray.Run('a').history)").value == "400"


@pytest.mark.series
def test_a_grid_in_a_notebook_shows_nothing_but_its_value(tmp_path: Path) -> None:
    with kernel(tmp_path) as book:
        cell = book.run("import mnist_ray\nmnist_ray.tune('smoke', epochs=1).num_trained")
        assert (cell.streams, cell.value, cell.error) == ("", "4", None)
