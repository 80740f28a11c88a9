"""A user's own network on Ray: its code travels with a job, its noise is the same for any number of workers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.own_networks import write_nets
from tests.support.ray_head import RayHead
from tests.support.ray_jobs import launch, run_apart

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRAIN = ["train", "--dataset", "digits", "--train-limit", "200", "--epochs", "2"]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(f"results/runs/{run}/best/model.safetensors")


def test_a_job_gets_the_code_and_gives_the_bits_of_this_machine(shared_head: RayHead, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    write_nets(folder / "parts", name="layers.py")
    (folder / "nets.py").write_text("from parts.layers import make_net as made\n\n\ndef make(a, b, width):\n"
                                    "    return made(a, b, width)\n")  # fmt: skip
    own = ["--code", str(folder), "--model", "nets.py:make", "--set", "model_settings.width=4"]
    assert run_apart(*TRAIN, *own, "--name", "here").code == 0
    storage = ["--storage", str(tmp_path / "results")]
    done = launch(shared_head, *TRAIN, *own, "--name", "there", *storage)
    assert done.code == 0, done.log
    assert "next: mnist-ray evaluate --run there" in done.log
    for name, value in weights("here").items():
        assert torch.equal(value, weights("there")[name]), name
    documents = [json.loads(Path(f"results/runs/{run}/config.json").read_text()) for run in ("here", "there")]
    assert documents[0]["config_hash"] == documents[1]["config_hash"]
    needed = launch(shared_head, "evaluate", "--run", "there", *storage)
    assert needed.code == 2
    assert "the code of its own network nets.py:make is needed" in needed.log
    evaluated = launch(shared_head, "evaluate", "--run", "there", "--code", str(folder), "--no-report", *storage)
    assert evaluated.code == 0, evaluated.log


@pytest.mark.series
def test_a_grid_over_an_own_setting_is_trained_by_a_job(shared_head: RayHead, tmp_path: Path) -> None:
    write_nets(tmp_path)
    grid = "model: my_nets.py:mlp\ndataset: digits\nepochs: 1\ntrain_limit: 200\nmodel_settings: {width: [4, 8]}\n"
    Path("grid.yaml").write_text(grid)
    done = launch(shared_head, "tune", "--grid", "grid.yaml", "--name", "g", "--storage", str(tmp_path / "results"))
    assert done.code == 0, done.log
    again = run_apart("tune", "--grid", "grid.yaml", "--name", "g", "--json")
    assert (again.code, json.loads(again.output)["trained"]) == (0, 0)
    assert [row["model_settings.width"] for row in json.loads(again.output)["leaderboard"]]


@pytest.mark.series
def test_workers_that_share_a_run_draw_the_noise_of_one_and_say_if_they_can_not(tmp_path: Path) -> None:
    write_nets(
        tmp_path,
        "def noisy(image_shape, num_classes):\n    net = Net(image_shape, num_classes)\n"
        "    net.drop = nn.GELU()\n    net.norm = nn.Sequential(net.norm, nn.RReLU())\n    return net\n",
    )
    own = ["--model", "my_nets.py:make_net", "--set", "precision=float64"]
    assert run_apart(*TRAIN, *own, "--name", "one").code == 0
    two = run_apart(*TRAIN, *own, "--name", "two", "--num-workers", "2")
    assert two.code == 0, two.log
    assert "draws random numbers" not in two.log
    for name, value in weights("one").items():
        # Rounding alone moves a bias that the batch norm after it cancels; other noise would move weights by 1e-3.
        torch.testing.assert_close(weights("two")[name], value, rtol=0, atol=1e-6)
    for workers, times in (("1", 0), ("2", 1)):
        done = run_apart(*TRAIN, "--model", "my_nets.py:noisy", "--name", f"noisy{workers}", "--num-workers", workers)
        assert done.code == 0, done.log
        assert done.log.count("network my_nets.py:noisy: draws random numbers besides dropout, so its results") == times


@pytest.mark.series
def test_an_error_of_the_network_on_one_of_two_workers_is_one_line(tmp_path: Path) -> None:
    counted = (
        "from torch import distributed as ranks\n        self.steps = getattr(self, 'steps', 0) + 1\n        "
        "assert self.steps < 5 or not ranks.is_initialized() or ranks.get_rank() != 1, 'enough'\n        "
        "values"
    )
    path = write_nets(tmp_path)
    path.write_text(path.read_text().replace("values", counted, 1))
    # After a restart from the first epoch, the network would come to its end.
    sharing = ["--num-workers", "2", "--max-failures", "0"]
    done = run_apart(*TRAIN, "--model", "my_nets.py:make_net", "--name", "a", *sharing)
    assert done.code == 7, done.log
    assert "model='my_nets.py:make_net': my_nets.py:17: AssertionError: enough" in done.log.splitlines()[-1]


@pytest.mark.series
def test_an_error_of_the_network_in_a_grid_ends_it_without_restarts(tmp_path: Path) -> None:
    counted = "self.steps = getattr(self, 'steps', 0) + 1\n        assert self.steps < 30, 'enough'\n        values"
    path = write_nets(tmp_path)
    path.write_text(path.read_text().replace("values", counted, 1))
    Path("grid.yaml").write_text(
        "model: my_nets.py:make_net\ndataset: digits\nepochs: 9\ntrain_limit: 200\nmodel_settings.width: [2, 4]\n"
    )
    done = run_apart("tune", "--grid", "grid.yaml", "--name", "g")
    assert done.code == 7, done.log
    assert done.log.splitlines()[-1] == (
        "mnist-ray: error: model='my_nets.py:make_net': my_nets.py:16: AssertionError: enough"
    )
    assert "a worker was lost" not in done.log
