"""What the functions do, held against the commands of the same names; none of these tests needs a Ray."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image

import mnist_ray
from mnist_ray.api.calling import call as calling
from mnist_ray.api.results import table_of
from mnist_ray.cli.main import run_command
from mnist_ray.config.own_code import given_code
from mnist_ray.config.yaml_files import yaml_text
from mnist_ray.errors import CheckpointError, ConfigError, ConflictError, DataError, RunFailedError
from mnist_ray.interruption import give_up
from mnist_ray.results.schemas import TABLES
from tests.support.grid_runs import train_without_ray

SMALL: dict[str, Any] = {"dataset": "digits", "epochs": 2, "hidden_sizes": [16, 8], "train_limit": 300}
OPTIONS = ["--dataset", "digits", "--epochs", "2", "--hidden-sizes", "16,8", "--train-limit", "300"]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage with the grid g of four settings and two seeds."""
    folder = str(tmp_path_factory.mktemp("results"))
    train_without_ray(folder, "smoke", seeds="2", epochs=1)
    return folder


@pytest.fixture(scope="module")
def evaluation(storage: str) -> mnist_ray.Evaluation:
    return mnist_ray.evaluate(mnist_ray.Grid("g", storage))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("L", (28, 28), 40 * number).save(folder / f"{number}.png")
        Image.linear_gradient("L").resize((28, 28)).rotate(90 * number).save(folder / f"{number}.png")
    (folder / "broken.png").write_text("no image")
    return folder


def said_as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run_command([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_is_that_of_the_command_with_the_same_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = mnist_ray.train(**SMALL, storage=tmp_path)
    assert not here.already_done
    assert mnist_ray.train(**SMALL, storage=tmp_path) == mnist_ray.Run(here.name, str(tmp_path))
    # Its default name and its bits are those of the command.
    done = said_as_json(capsys, "train", *OPTIONS, "--storage", str(tmp_path))
    assert done == {
        "run": here.name, "epochs": 2, "best_epoch": here.best_epoch, "val_loss": here.val_loss,
        "val_accuracy": here.val_accuracy, "already_done": True,
    }  # fmt: skip
    said_as_json(capsys, "train", *OPTIONS, "--name", "b", "--storage", str(tmp_path))
    weights = mnist_ray.Run("b", str(tmp_path)).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in here.state_dict().items())
    assert here.history.schema.equals(TABLES["history"].schema(code_version=""), check_metadata=False)
    assert here.history["val_loss"].to_pylist()[here.best_epoch - 1] == here.val_loss
    assert (here.settings["hidden_sizes"], here.settings["dropout"]) == ([16, 8], 0.0)
    assert Path(here.uri, "config.json").is_file()
    with pytest.raises(ConflictError, match="exists with another config"):
        mnist_ray.train(**SMALL, dropout=0.1, name=here.name, storage=tmp_path)
    more = mnist_ray.train(**{**SMALL, "epochs": 3}, name=here.name, storage=tmp_path)
    assert (more.already_done, len(more.history)) == (False, 3)


def test_a_network_takes_pixels_as_an_exported_one_does(storage: str) -> None:
    best = mnist_ray.Grid("g", storage).best_run
    network, pixels = best.network(), torch.randint(0, 256, (4, 1, 28, 28)).float()
    assert not network.training
    checkpoint_network = network.get_submodule("network")
    for name, value in checkpoint_network.state_dict().items():
        assert torch.equal(value, best.state_dict()[name])
    assert network(pixels).shape == (4, 10)


def test_a_grid_whose_runs_are_done_is_read(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    grid = mnist_ray.tune("smoke", name="g", seeds=2, epochs=1, storage=storage)
    assert grid == mnist_ray.Grid("g", storage)
    assert grid.runs.num_rows == 8
    assert grid.runs.schema.equals(TABLES["runs"].schema(code_version=""), check_metadata=False)
    assert grid.best_run.val_accuracy == max(grid.runs["best_val_accuracy"].to_pylist())
    told = said_as_json(capsys, "tune", "--grid", "smoke", "--name", "g", "--seeds", "2", "--epochs", "1",
                        "--storage", storage)  # fmt: skip
    assert grid.leaderboard.to_pylist() == told["leaderboard"]
    # A mapping, a file and overrides are the same grid.
    axes = {"dataset": "digits", "hidden_sizes": [32, 16], "dropout": [0.0, 0.3], "batch_norm": [False, True]}
    file = Path(storage) / "grid.yaml"
    file.write_text(yaml_text({**axes, "epochs": 2}))
    for given in ({**axes, "seeds": [0, 1], "epochs": 1}, {**axes, "epochs": 1, "seeds": 2}):
        assert mnist_ray.tune(given, name="g", storage=storage) == grid
    assert mnist_ray.tune(file, name="g", seeds=[0, 1], epochs=1, storage=storage) == grid


def test_an_evaluation_and_its_comparison_are_those_of_the_commands(
    storage: str, evaluation: mnist_ray.Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    told = said_as_json(capsys, "evaluate", "--grid", "g", "--no-report", "--storage", storage)
    assert (told["evaluation"], told["already_done"]) == (evaluation.name, True)
    assert evaluation.table("metrics")["accuracy"].to_pylist() == [row["accuracy"] for row in told["metrics"]]
    assert evaluation.table("metrics", columns=["run"]).column_names == ["run"]
    assert sorted(evaluation.facts["runs"]) == sorted(mnist_ray.Grid("g", storage).runs["run"].to_pylist())
    answer = mnist_ray.compare(evaluation)
    told = said_as_json(capsys, "compare", evaluation.name, "--storage", storage)
    assert [*answer.sentences] == told["answer"] == str(answer).splitlines()
    assert answer.settings.to_pylist() == told["settings"]
    assert answer.comparisons.num_rows == len(told["comparisons"]) == 2 * 6
    assert answer.effects.num_rows == len(told["effects"])
    assert answer.effects == evaluation.table("effects")
    assert answer.comparisons == evaluation.table("comparisons")
    against = mnist_ray.compare(evaluation, baseline=answer.settings["setting"][0].as_py(), margin=5)
    assert against.comparisons.num_rows == 2 * 3
    assert set(against.comparisons["margin"].to_pylist()) == {0.05, None}
    with pytest.raises(ConfigError, match=r"table='metric': choose one of .*; did you mean metrics\?"):
        evaluation.table("metric")


def test_an_evaluation_of_one_setting_compares_nothing(storage: str) -> None:
    runs = [mnist_ray.Run(name, storage) for name in mnist_ray.Grid("g", storage).runs["run"].to_pylist()[:1]]
    found = mnist_ray.evaluate(runs, split="train", name="one")
    assert (found.name, found.facts["split"], found.report) == ("one", "train", None)
    answer = mnist_ray.compare(found)
    assert (answer.sentences, answer.comparisons.num_rows, answer.effects.num_rows) == ((), 0, 0)
    assert str(answer) == "One setting: nothing to compare."
    assert answer.comparisons.schema.names == [*TABLES["comparisons"].names]
    page = found.write_report(margin=1)
    assert page == found.report
    assert Path(page).is_file()


def test_predictions_are_those_of_the_command(storage: str, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = mnist_ray.Grid("g", storage).best_run
    done = mnist_ray.predict(run, images)
    told = said_as_json(capsys, "predict", "--run", run.name, "--images", str(images), "--storage", storage)
    assert (told["predictions"], told["already_done"], told["uri"]) == (done.name, True, done.uri)
    assert done.facts.items() >= {"num_images": 3, "num_errors": 1, "run": run.name}.items()
    assert done.table().num_rows == 3
    assert done.table("image_errors")["path"].to_pylist() == ["broken.png"]
    single = mnist_ray.predict(run, images / "1.png").table()
    told = said_as_json(capsys, "predict", "--run", run.name, "--images", str(images / "1.png"), "--storage", storage)
    assert single["predicted_label_name"].to_pylist() == [told["predicted_label_name"]]
    with pytest.raises(DataError, match="cannot be read"):
        mnist_ray.predict(run, images, strict=True, name="strict")


def test_a_query_sees_all_tables_of_the_storage_or_of_one_evaluation(
    storage: str, evaluation: mnist_ray.Evaluation
) -> None:
    sql = "SELECT setting, count(*) AS runs FROM metrics GROUP BY setting ORDER BY setting"
    table = mnist_ray.query(sql, evaluation=evaluation)
    assert isinstance(table, pa.Table)
    assert (table.column_names, table["runs"].to_pylist()) == (["setting", "runs"], [2, 2, 2, 2])
    assert mnist_ray.query("SELECT count(*) AS n FROM runs", storage=storage)["n"].to_pylist() == [8]
    for sql, message in (("SELEKT 1", "SQL: Parser Error"), ("", "SQL: there is no statement")):
        with pytest.raises(ConfigError, match=message):
            mnist_ray.query(sql, storage=storage)


def test_nothing_is_printed_unless_that_is_asked_for(
    storage: str, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def all_calls(folder: Path, *, quiet: bool) -> None:
        run = mnist_ray.train(**SMALL, storage=folder, quiet=quiet)
        found = mnist_ray.evaluate(run, report=True, quiet=quiet)
        mnist_ray.compare(found, quiet=quiet)
        mnist_ray.predict(run, images, quiet=quiet)
        mnist_ray.query("FROM metrics", storage=folder, quiet=quiet)
        mnist_ray.tune("smoke", name="g", seeds=2, epochs=1, storage=storage, quiet=quiet)

    all_calls(tmp_path / "quiet", quiet=True)
    assert capfd.readouterr() == ("", "")
    all_calls(tmp_path / "said", quiet=False)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "epoch 2/2" in captured.err


def test_a_call_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    torch.backends.cudnn.deterministic = False
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        mnist_ray.train(**SMALL, storage=tmp_path)
        assert torch.get_num_threads() == 2
        assert not torch.backends.cudnn.deterministic
    finally:
        torch.set_num_threads(1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_calls_from_several_threads_wait_for_each_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda seed: mnist_ray.train(**SMALL, seed=seed, storage=tmp_path), range(2)))
    assert [run.settings["seed"] for run in runs] == [0, 1]
    assert [run.already_done for run in runs] == [False, False]


def test_a_network_of_ones_own_is_known_to_what_comes_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(
        "from torch import nn\n"
        "def make(image_shape, num_classes, width=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, width), nn.ReLU(), nn.Linear(width, num_classes))\n"
    )
    own: dict[str, Any] = {"model": "nets.py:make", "model_settings": {"width": 6}}
    run = mnist_ray.train(**own, dataset="digits", epochs=1, train_limit=300, storage="results")
    assert run.code == (str(tmp_path / "nets.py"),)
    assert given_code() == []
    found = mnist_ray.evaluate(run)
    assert found.table("metrics").num_rows == 1
    assert run.network()(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    by_name = mnist_ray.Run(run.name)
    with pytest.raises(ConfigError, match=r"nets\.py:make is needed"):
        mnist_ray.evaluate(by_name, split="train")
    assert mnist_ray.evaluate(by_name, split="train", code=["nets.py"]).facts["num_examples"] > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mnist_ray.train(num_workers=0), "num_workers=0: must be a whole number from 1"),
        (lambda: mnist_ray.train(num_workers=(2, 1)), "num_workers=1: must be a whole number from 2"),
        (lambda: mnist_ray.train(dropout=2), "dropout=2: must be less than 1"),
        (lambda: mnist_ray.train(device="tpu"), "device='tpu': choose one of cpu, gpu"),
        (
            lambda: mnist_ray.train(log=["mlfow"]),
            "log='mlfow': choose one of tensorboard, mlflow; did you mean mlflow?",
        ),
        (lambda: mnist_ray.train(name="a b"), "name='a b': use 1 to 64 letters"),
        (lambda: mnist_ray.tune("smok"), "grid='smok': choose one of variants, regularization, smoke"),
        (lambda: mnist_ray.tune({"dropout": [0, 2]}), "tune: dropout=2: must be less than 1"),
        (lambda: mnist_ray.tune("smoke", num_samples=3), "--search and --num-samples go together"),
        (lambda: mnist_ray.tune("smoke", search="grid"), "search='grid': choose one of random, optuna"),
        (lambda: mnist_ray.tune("smoke", gpus_per_stack=float("nan")), "gpus_per_stack=nan: must be a number above 0"),
        (lambda: mnist_ray.tune("smoke", seeds=0), "seeds='0': at least one is needed"),
        (lambda: mnist_ray.tune("smoke", budget="20"), "--budget '20': give a time with its units"),
        (lambda: mnist_ray.tune("smoke", until_settled=True, looks=[1]), "--looks '1': a look needs 2 seeds or more"),
        (lambda: mnist_ray.tune("smoke", looks=[3, 5]), "--looks goes with --until-settled"),
        (lambda: mnist_ray.tune("smoke", margin=0, budget="1m"), "margin=0: must be points of accuracy"),
        (lambda: mnist_ray.evaluate([]), "evaluate: give runs of one storage, not of 0"),
        (lambda: mnist_ray.evaluate(mnist_ray.Run("a"), split="tets"), "split='tets': must be 'train' or 'test'"),
        (lambda: mnist_ray.compare(mnist_ray.Evaluation("a"), margin=101), "margin=101: must be points of accuracy"),
        (lambda: mnist_ray.predict(mnist_ray.Run("a"), "x", polarity="dark"), "polarity='dark': choose one of"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    call: Callable[[], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        call()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    place = str(tmp_path)
    for missing in (
        lambda: mnist_ray.Run("a", place).history,
        lambda: mnist_ray.Run("a", place).network(),
        lambda: mnist_ray.Grid("a", place).runs,
        lambda: mnist_ray.Evaluation("latest", place).uri,
        lambda: mnist_ray.Prediction("a", place).table(),
        lambda: mnist_ray.evaluate(mnist_ray.Grid("a", place)),
    ):
        with pytest.raises(CheckpointError, match=r"'(a|latest)'"):
            missing()


def test_arguments_of_several_types_are_text_in_a_table() -> None:
    rows = [{"width": 64, "name": "a", "mean": None}, {"width": "wide", "name": "b", "mean": 0.5}]
    assert table_of(rows).to_pydict() == {"width": ["64", '"wide"'], "name": ["a", "b"], "mean": [None, 0.5]}
    assert table_of([]).num_rows == 0


def test_a_call_that_is_given_up_says_why() -> None:
    def wait_for_another_thread_that_gives_up() -> None:
        threading.Thread(target=give_up, args=(7, "too few nodes")).start()
        threading.Event().wait(60)

    with pytest.raises(RunFailedError, match="too few nodes"), calling(quiet=True):
        wait_for_another_thread_that_gives_up()


# Without `if __name__ == "__main__"`, and with something to do after the call.
SCRIPT = """
import sys, mnist_ray
try:
    run = mnist_ray.train(dataset="digits", epochs=int(sys.argv[1]), hidden_sizes=[16, 8], name="a", storage="results")
except KeyboardInterrupt as stop:
    sys.exit(f"interrupted: {stop}")
print(run.already_done, len(run.history))
"""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 1, "interrupted: stopped\n"),
        pytest.param(signal.SIGTERM, -15, "", marks=pytest.mark.series),
    ],
)
def test_a_signal_ends_a_call_and_the_same_call_goes_on(
    number: signal.Signals, code: int, said: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SCRIPT, "40"]
    script = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("results/runs/a/checkpoints/epoch-0002/checkpoint.json")):
        assert script.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    script.send_signal(number)
    assert script.communicate(timeout=120) == ("", said)
    assert script.returncode == code
    assert not list(tmp_path.glob("results/runs/a/best"))
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout, again.stderr) == (0, "False 40\n", "")
