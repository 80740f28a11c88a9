import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.cluster.tune_job import TuneJob, gpu_stack_size
from mnist_ray.grids.grid import grid_settings, read_grid
from mnist_ray.grids.growth import Growth
from mnist_ray.jobs.estimate import makespan, plan_grid
from tests.support.colour_images import write_colour_folder
from tests.support.own_networks import write_nets


def job_of(storage: Path, **more: Any) -> TuneJob:
    grid = read_grid(grid_settings("smoke"), seeds="3", overrides={}, source="test")
    return TuneJob(grid, "g", str(storage), storage, **more)


def test_a_plan_has_every_run_once_and_a_time_from_a_probe_and_trains_nothing(tmp_path: Path) -> None:
    plan = plan_grid(job_of(tmp_path, num_workers=2, stack_size=4))
    assert (plan.num_runs, plan.num_done) == (12, 0)
    # Two shapes (with and without batch norm) of six runs each.
    assert [len(stack.runs) for stack in plan.stacks] == [3, 3, 3, 3]
    assert len({run.run for stack in plan.stacks for run in stack.runs}) == 12
    for stack in plan.stacks:
        assert stack.samples_per_s > 0
        # Two epochs of three runs on digits' 1,295 training examples.
        assert stack.seconds == pytest.approx(2 * 3 * 1295 / stack.samples_per_s, rel=0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_looks_goes_up_to_the_last(tmp_path: Path) -> None:
    # Of three seeds, looks may leave out the last ones.
    for looks, num_runs in (((2,), (8, 8)), ((2, 3), (8, 12))):
        plan = plan_grid(job_of(tmp_path, growth=Growth(looks, 0.005, settles=True)))
        assert plan.first_look is not None
        assert (plan.first_look.num_runs, plan.num_runs) == num_runs
        # Equal stacks are timed once, so the same work takes the same time.
        assert (plan.first_look == replace(plan, first_look=None)) == (len(looks) == 1)


def test_stacks_are_so_small_that_every_worker_has_one(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    runs = job.runs(job.samples())
    assert [len(stack) for stack in job.trials(runs, 12)] == [1] * 12
    assert max(len(stack) for stack in job.trials(runs, 1)) == 6
    assert [len(stack) for stack in job.trials(runs, 1, gpu_memory=80 << 30)] == [6, 6]


def test_the_number_of_trials_at_once_follows_the_resources(tmp_path: Path) -> None:
    assert job_of(tmp_path).trials_at_once(16, use_gpu=False) == 16
    assert job_of(tmp_path, num_workers=3).trials_at_once(16, use_gpu=False) == 3
    assert job_of(tmp_path, gpus_per_stack=0.5).trials_at_once(2, use_gpu=True) == 4
    assert job_of(tmp_path, workers_per_run=3).trials_at_once(8, use_gpu=False) == 2


def test_the_size_of_a_stack_on_a_gpu_follows_its_memory_and_the_largest_network(tmp_path: Path) -> None:
    settings = {"variant": ["baseline", "cnn"], "learning_rate": [0.001 * (1 + step) for step in range(200)]}
    grid = read_grid(settings, seeds=None, overrides={}, source="test")
    job = TuneJob(grid, "g", str(tmp_path), tmp_path)
    runs = job.runs(None)
    # A CNN's run takes 0.7 GB, an MLP's 14 MB; a batch of 64 may have 71 images.
    mlps = [run for run in runs if run.config.model == "mlp"]
    assert gpu_stack_size(mlps, 80 << 30, Path("unused")) == 160
    assert gpu_stack_size(mlps, 1 << 30, Path("unused")) == 54
    assert gpu_stack_size(runs, 80 << 30, Path("unused")) == 96
    assert gpu_stack_size(runs, 16 << 30, Path("unused")) == 19
    assert gpu_stack_size(runs, 1000, Path("unused")) == 1
    half = TuneJob(grid, "g", str(tmp_path), tmp_path, gpus_per_stack=0.5)
    assert max(len(stack) for stack in half.trials(runs, 1, gpu_memory=16 << 30)) <= 9


def test_the_makespan_is_that_of_workers_that_take_the_next_when_they_are_free() -> None:
    assert makespan([3.0, 2.0, 2.0, 1.0], 2) == 4.0
    assert makespan([3.0, 2.0], 8) == 3.0


def test_plan_prints_what_a_command_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", str(tmp_path)]
    assert run_command(["plan", "tune", "--grid", "smoke", "--seeds", "2", *storage]) == 0
    shown = capsys.readouterr().out
    assert "smoke-digits: 8 runs, 0 done already" in shown
    assert "estimated by a probe" in shown
    looks = ["plan", "tune", "--grid", "smoke", "--until-settled", "--looks"]
    assert run_command([*looks, "2", *storage]) == 0
    shown = capsys.readouterr().out
    assert "until settled: 8 runs\n" in shown
    assert " to " not in shown.splitlines()[-1]
    assert run_command([*looks, "2,200", *storage]) == 0
    shown = capsys.readouterr().out
    assert "until settled: 8 to 800 runs\n" in shown
    assert " to " in shown.splitlines()[-1]
    assert run_command(["plan", "train", "--dataset", "digits", *storage]) == 0
    assert "baseline-digits-s0: 1 run, 0 done already; 1 stack to train" in capsys.readouterr().out
    resnet = ["plan", "train", "--variant", "resnet", "--hidden-sizes", "4", "--dataset", "digits", *storage]
    assert run_command(resnet) == 0
    reason = "layer block1 (ResidualBlock) has no stacked form"
    why = f"engine modules: runs train one after the other, not as one program: {reason}"
    assert capsys.readouterr().out.splitlines()[0] == why
    assert run_command([*resnet, "--json"]) == 0
    assert [each["not_stacked"] for each in json.loads(capsys.readouterr().out)["trains"]] == [reason]
    assert run_command(["plan", "tune", "--grid", "smoke", "--epochs", "0", *storage]) == 2
    assert "epochs=0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "shared"),
    [
        (["train", "--num-workers", "1"], None),
        (["train", "--num-workers", "2"], "2 workers share a run"),
        (["train", "--num-workers", "2:8"], "2 to 8 workers share a run"),
        (["tune", "--seeds", "2", "--workers-per-run", "1"], None),
        (["tune", "--seeds", "2", "--workers-per-run", "2"], "2 workers share a run"),
    ],
)
def test_runs_that_workers_share_are_planned_as_modules(
    command: list[str], shared: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = command
    plan = ["plan", name, "--dataset", "digits", "--epochs", "1", "--storage", str(tmp_path), *options]
    if name == "tune":
        plan += ["--variant", "baseline"]
    assert run_command([*plan, "--json"]) == 0
    trains = json.loads(capsys.readouterr().out)["trains"]
    engine = "modules" if shared else "stack"
    assert {(each["engine"], each["not_stacked"]) for each in trains} == {(engine, shared)}


def test_a_plan_says_once_that_a_network_depends_on_the_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_nets(
        tmp_path,
        "def noisy(image_shape, num_classes, width=8):\n"
        "    return nn.Sequential(mlp(image_shape, num_classes, width), nn.RReLU())\n",
    )
    noisy = ["--model", "my_nets.py:noisy", "--set", "model_settings.width=[8,16]", "--dataset", "digits"]
    plan = ["plan", "tune", *noisy, "--epochs", "1", "--seeds", "2"]
    for workers, times in (("1", 0), ("2", 1)):
        assert run_command([*plan, "--json", "--workers-per-run", workers]) == 0
        planned = capsys.readouterr()
        assert {row["batch norm"] for row in json.loads(planned.out)["trains"]} == {None}
        assert (
            planned.err.count("network my_nets.py:noisy: draws random numbers besides dropout, so its results") == times
        )


def test_the_size_of_a_stack_on_a_gpu_follows_the_images_and_classes_of_the_data(tmp_path: Path) -> None:
    def size(dataset: str, **fixed: Any) -> int:
        overrides = {"variant": "cnn", "learning_rate": [0.001, 0.002], "dataset": dataset, **fixed}
        job = TuneJob(read_grid({}, seeds="100", overrides=overrides, source="test"), "g", str(tmp_path), tmp_path)
        return gpu_stack_size(job.runs(None), 64 << 30, tmp_path)

    photos = f"folder:{write_colour_folder(tmp_path / 'photos', 3, width=96, height=96)}"
    of = [size("mnist"), size("cifar10"), size(photos), size(photos, image_size=28, color="grey")]
    assert of[0] > of[1] > of[2] > 1
    assert of[3] == of[0]
