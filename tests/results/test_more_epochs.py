"""A run or a grid that is given more epochs goes on, to the bits of one that had them from the start."""

from pathlib import Path

import pytest
import torch

from mnist_ray.cli.main import run_command
from mnist_ray.cluster.tune_job import TuneJob
from mnist_ray.config.placement import Workers
from mnist_ray.config.settings import GridConfig, TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.errors import CheckpointError, ConflictError
from mnist_ray.grids.grid import expand, grid_settings, read_grid
from mnist_ray.jobs.estimate import plan_grid, plan_run
from mnist_ray.optimizers.optimizers import SCHEDULES, SCHEDULES_OF_LENGTH, OptimizerConfig, learning_rate
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.history import timeless
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import read_history_table, read_status
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.training.data import load_data, prepare_data
from mnist_ray.training.loop import fit
from mnist_ray.training.train_stack import train_stack
from tests.support.colour_images import write_colour_folder
from tests.support.tiny_digits import tiny_digits

CPU = torch.device("cpu")
TRAIN = ["train", "--dataset", "digits", "--train-limit", "300", "--hidden-sizes", "8"]
TUNE = ["tune", "--grid", "smoke", "--train-limit", "300", "--name", "g", "--num-workers", "1"]


def config_of(epochs: int, **settings: object) -> TrainConfig:
    small = {"dataset": "digits", "hidden_sizes": (8,), "epochs": epochs}
    return variant_config("dropout_batchnorm", {**small, **settings})


def train(storage: Storage, config: TrainConfig, *, name: str = "a", up_to: int | None = None) -> RunFolder:
    """Trains a run as the launcher does, or up to some epoch, as a killed one."""
    data, folder = prepare_data(config, tiny_digits(300), device=CPU), RunFolder(storage, name)
    folder.claim(config, data)
    for state in fit(config, data, device=CPU, state=folder.latest_state()):
        folder.save(config, data, state)
        if len(state.history) == up_to:
            return folder
    folder.finish(config)
    return folder


def assert_same_results(one: RunFolder, other: RunFolder) -> None:
    assert (one.best().sha256, timeless(one.history())) == (other.best().sha256, timeless(other.history()))
    for name in ("config", "config_hash", "epoch", "validation", "data_sha256"):
        assert one.best().document[name] == other.best().document[name]
    assert one.config() == other.config()
    assert read_history_table(one.storage, one.run) == one.history()


def test_an_evaluation_waits_for_the_first_run_that_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = ["evaluate", "--all-runs", "--dataset", "digits", "--storage", str(tmp_path)]
    assert run_command(evaluate) == 3
    none = f"mnist-ray: error: storage={str(tmp_path)!r}: no runs; train one with mnist-ray train or tune"
    assert capsys.readouterr().err.splitlines()[-1] == none
    train(open_storage(str(tmp_path)), config_of(3), up_to=2)
    assert run_command(evaluate) == 3
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"mnist-ray: error: storage={str(tmp_path)!r}: no finished run among 1; mnist-ray runs shows how far each "
        "is, and the command that trains it goes on"
    )


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_uri"))


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_schedules_that_more_epochs_change_are_known(schedule: str) -> None:
    shorter, longer = (
        OptimizerConfig(schedule=schedule, warmup_epochs=1.5, step_epochs=2, epochs=epochs) for epochs in (5, 6)
    )
    rates = [[learning_rate(step, 7, config) for step in range(5 * 7)] for config in (shorter, longer)]
    assert (rates[0] != rates[1]) == (schedule in SCHEDULES_OF_LENGTH)


@pytest.mark.parametrize("up_to", [None, 1])
@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_a_run_that_gets_more_epochs_has_the_bits_of_one_that_had_them(
    storage: Storage, schedule: str, up_to: int | None
) -> None:
    more = {"schedule": schedule, "step_epochs": 1}
    short = train(storage, config_of(2, **more), up_to=up_to)
    long = train(storage, config_of(4, **more))
    assert short == long
    assert_same_results(long, train(storage, config_of(4, **more), name="b"))


def test_a_run_that_has_stopped_improving_has_no_more_epochs_to_train(tmp_path: Path) -> None:
    storage, patient = open_storage(str(tmp_path)), {"early_stopping_patience": 1, "learning_rate": 0.3}
    assert len(train(storage, config_of(30, **patient)).history()) < 30
    train(storage, config_of(31, **patient))
    assert_same_results(RunFolder(storage, "a"), train(storage, config_of(31, **patient), name="b"))


def test_a_run_that_waits_for_more_epochs_is_unfinished_and_keeps_those_it_has(tmp_path: Path) -> None:
    storage, longer = open_storage(str(tmp_path)), config_of(5)
    folder = train(storage, config_of(2))
    train(storage, longer, up_to=3)
    assert (read_status(storage, "a").status, len(folder.history())) == ("unfinished", 3)
    with pytest.raises(CheckpointError, match="not finished"):
        folder.best()
    assert_same_results(train(storage, longer), train(storage, longer, name="b"))


@pytest.mark.parametrize("step", ["best", "logged", "config"])
def test_killed_between_two_steps_it_is_the_old_run_or_the_new_one(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path))
    folder = train(storage, config_of(2))
    storage.write_bytes("runs/a/logged/mlflow.json", b"{}")
    before = {name: getattr(storage, name) for name in ("delete_folder", "write_bytes")}

    def kill(name: str) -> None:
        def killed(path: str, *arguments: object, **named: object) -> None:
            before[name](path, *arguments, **named)
            if step in path:
                raise KeyboardInterrupt

        monkeypatch.setattr(type(storage), name, lambda _, *arguments, **named: killed(*arguments, **named))

    for name in before:
        kill(name)
    with pytest.raises(KeyboardInterrupt):
        train(storage, config_of(4))
    monkeypatch.undo()
    assert (folder.config().epochs, folder.status().status) == (4 if step == "config" else 2, "unfinished")
    assert len(folder.history()) == 2
    assert_same_results(train(storage, config_of(4)), train(storage, config_of(4), name="b"))
    assert not storage.exists("runs/a/logged/mlflow.json")


def test_the_end_of_a_writer_with_fewer_epochs_is_not_the_end_of_the_run(tmp_path: Path) -> None:
    storage, short, longer = open_storage(str(tmp_path)), config_of(2), config_of(4)
    late = train(storage, short)
    content = storage.read_bytes("runs/a/best/checkpoint.json")
    train(storage, longer, up_to=3)
    # A writer that has checked before, and writes now.
    storage.write_bytes("runs/a/best/checkpoint.json", content)
    with pytest.raises(CheckpointError, match="another run than config"):
        late.best()
    train(storage, longer, up_to=4)
    late.finish(short)
    assert not late.is_finished()
    assert_same_results(train(storage, longer), train(storage, longer, name="b"))
    with pytest.raises(ConflictError, match="epochs=4 there, 2 here"):
        train(storage, short)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "1"], "epochs=2 there, 1 here: a run never loses epochs; --epochs 2 goes on with it"),
        (["--epochs", "3", "--dropout", "0.1"], "dropout=0.0 there, 0.1 here"),
        (["--epochs", "3", "--no-resume"], "exists; leave out --no-resume to go on with it, or choose another --name"),
        (["--epochs", "2", "--no-resume"], "exists; leave out --no-resume"),
    ],
)
def test_another_run_under_the_name_is_a_conflict(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TRAIN, "--storage", str(tmp_path), "--name", "a"]
    assert run_command([*command, "--epochs", "2"]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run_command([*command, *options]) == 6
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_cosine_and_a_pruned_run_get_no_more_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TRAIN, "--storage", str(tmp_path)]
    for name, more in (("cosine", ["--schedule", "cosine"]), ("pruned", [])):
        assert run_command([*command, "--name", name, *more, "--epochs", "1"]) == 0
    assert run_command(["prune", "--storage", str(tmp_path)]) == 0
    for name, more, reason in (
        ("cosine", ["--schedule", "cosine"], "with schedule=cosine, which ends with the last epoch, more epochs are"),
        ("pruned", [], "has 1 epoch and can't go on to 2: its last checkpoint was pruned, or is damaged"),
    ):
        for plan in ([], ["plan"]):
            capsys.readouterr()
            assert run_command([*plan, *command, "--name", name, *more, "--epochs", "2"]) == 6
            assert reason in capsys.readouterr().err.splitlines()[-1]
        assert run_command(["evaluate", "--run", name, "--storage", str(tmp_path), "--no-report"]) == 0


def test_a_finished_run_loses_nothing_to_a_command_that_cant_train(tmp_path: Path) -> None:
    command = [*TRAIN, "--storage", str(tmp_path), "--name", "a"]
    assert run_command([*command, "--epochs", "1"]) == 0
    assert run_command([*command, "--epochs", "2", "--num-workers", "1000"]) == 3
    assert RunFolder(open_storage(str(tmp_path)), "a").best().config.epochs == 1


@pytest.mark.ray
def test_a_grid_that_gets_more_epochs_goes_on_and_leaves_its_shorter_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, whole = (["--storage", str(tmp_path / name)] for name in ("cut", "whole"))
    assert run_command([*TUNE, *cut, "--epochs", "1"]) == 0
    short = GridFolder(open_storage(cut[1]), "g").run_names()
    capsys.readouterr()
    assert run_command([*TUNE, *cut, "--epochs", "3", "--seeds", "2"]) == 0
    assert (
        "grid 'g': 4 of 8 runs go on from those with fewer epochs, which stay as single runs" in capsys.readouterr().err
    )
    assert run_command([*TUNE, *whole, "--epochs", "3", "--seeds", "2"]) == 0
    names = GridFolder(open_storage(cut[1]), "g").run_names()
    assert names == GridFolder(open_storage(whole[1]), "g").run_names()
    for name in names:
        assert_same_results(*(RunFolder(open_storage(uri), name) for _, uri in (cut, whole)))
    for name in short:
        assert len(RunFolder(open_storage(cut[1]), name).best().history) == 1
    capsys.readouterr()
    assert run_command([*TUNE, *cut, "--epochs", "1", "--seeds", "2"]) == 6
    assert "epochs=3 there, 1 here" in capsys.readouterr().err.splitlines()[-1]
    assert run_command([*TUNE, *cut, "--epochs", "4", "--batch-norm"]) == 6
    assert (
        "epochs=3 there, 4 here; batch_norm=no,yes there, yes here; seeds=0,1 there, 0 here"
        in (capsys.readouterr().err.splitlines()[-1])
    )
    # A run of a grid is named after its config.
    run = RunFolder(open_storage(cut[1]), names[0])
    longer = run.config().model_copy(update={"epochs": 9})
    with pytest.raises(ConflictError, match="it is a run of a grid, named after its config"):
        run.claim(longer, prepare_data(longer, tiny_digits(300), device=CPU))
    assert sorted(open_storage(cut[1]).list_folders("runs")) == sorted({*short, *names})


def test_a_grid_whose_ends_were_decided_by_epochs_gets_no_more_of_them(tmp_path: Path) -> None:
    def grid_of(epochs: int, **more: object) -> GridConfig:
        return read_grid({**grid_settings("smoke"), **more, "epochs": epochs}, seeds="1", overrides={}, source="test")

    cases: list[tuple[str, dict[str, str], list[str], str]] = [
        ("a", {}, ["asha.json"], "epochs (not with --scheduler asha)"),
        ("b", {}, ["looks.json"], r"epochs (not with --until-settled and --budget)"),
        ("c", {"schedule": "cosine"}, [], "epochs (not with schedule=cosine, which ends with the last epoch)"),
    ]
    for name, more, files, reason in cases:
        folder = GridFolder(open_storage(str(tmp_path)), name)
        short, longer = (grid_of(epochs, **more) for epochs in (2, 3))
        folder.claim(short, expand(short, name=name, max_runs=9))
        for file in files:
            folder.storage.write_bytes(folder.path(file), b"[]")
        runs = expand(longer, name=name, max_runs=9)
        assert folder.shorter_runs(runs) == {}
        with pytest.raises(ConflictError) as conflict:
            folder.claim(longer, runs)
        assert reason in str(conflict.value)
        assert "epochs=2 there, 3 here" in str(conflict.value)


def test_a_plan_counts_the_epochs_that_are_there(tmp_path: Path) -> None:
    uri, data_dir = str(tmp_path), tmp_path / "unused"
    settings = {"dataset": "digits", "train_limit": 300, "hidden_sizes": (8,)}
    short, longer = (
        read_grid({**settings, "epochs": epochs}, seeds="1", overrides={}, source="test") for epochs in (3, 7)
    )
    (of_grid,) = expand(short, name="g", max_runs=1)
    GridFolder(open_storage(uri), "g").claim(short, [of_grid])
    for name in (of_grid.run, "a"):
        train(open_storage(uri), of_grid.config, name=name)
    config = of_grid.config.model_copy(update={"epochs": 7})
    for name in ("a", "g"):
        begun, new = (
            plan_run(config, each, uri, data_dir, Workers(1, 1))
            if name == "a"
            else plan_grid(TuneJob(longer, each, uri, data_dir))
            for each in (name, "new")
        )
        assert (begun.num_runs, begun.num_done) == (1, 0)
        epochs = [plan.stacks[0].seconds * plan.stacks[0].samples_per_s for plan in (begun, new)]
        assert epochs[0] == pytest.approx(epochs[1] * 4 / 7)


def test_a_grid_on_other_data_gets_no_more_epochs_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, storage = write_colour_folder(tmp_path / "photos", 20), open_storage(str(tmp_path / "results"))
    settings = {"dataset": f"folder:{photos}", "hidden_sizes": (8,), "epochs": 1, "seeds": 1}
    grid = read_grid(settings, seeds=None, overrides={}, source="test")
    (run,) = expand(grid, name="g", max_runs=1)
    GridFolder(storage, "g").claim(grid, [run])
    list(train_stack([run], load_data(run.config, tmp_path, CPU), storage=storage, device=CPU))
    next(photos.rglob("*.png")).unlink()
    before = storage.list_files("")
    tune = ["tune", "--dataset", f"folder:{photos}", "--hidden-sizes", "8", "--seeds", "2", "--name", "g"]
    assert run_command([*tune, "--epochs", "2", "--storage", storage.uri]) == 6
    assert f"run {run.run!r}: exists with other data" in capsys.readouterr().err.splitlines()[-1]
    assert storage.list_files("") == before
