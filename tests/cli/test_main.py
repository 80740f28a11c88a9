"""The launcher as a person meets it: help, messages and exit codes, in real processes where it matters."""

import builtins
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from mnist_ray.cli import process
from mnist_ray.cli.main import cli, run_command
from mnist_ray.data.datasets import data_folder
from tests.support.doing_lines import without_doing
from tests.support.warm_processes import launched, wait

ROOT = Path(__file__).parents[2]


def walk(command: click.Command, name: str = "mnist-ray") -> list[tuple[str, click.Command]]:
    found = [(name, command)]
    if isinstance(command, click.Group):
        for child in command.commands.values():
            found += walk(child, f"{name} {child.name}")
    return found


@pytest.mark.parametrize(("name", "command"), walk(cli), ids=[name for name, _ in walk(cli)])
def test_every_command_and_option_has_help(name: str, command: click.Command) -> None:
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"


def test_the_table_of_commands_has_every_command_and_no_other() -> None:
    section = (ROOT / "docs/commands.md").read_text().partition("\n## Commands\n")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\|([^|]*)\|", section, re.MULTILINE)
    documented = [name for cell in first_cells for name in re.findall("`([^`]*)`", cell)]
    commands = [name for name, command in walk(cli) if not isinstance(command, click.Group)]
    assert sorted(documented) == sorted(commands)


def test_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from mnist_ray.cli.main import run_command\n"
        "for command in ([], ['train'], ['evaluate'], ['predict'], ['demo']):\n"
        "    assert run_command([*command, '--help']) == 0\n"
        "loaded = {'torch', 'ray', 'pyarrow', 'numpy', 'boto3'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    # What was understood of the data is said before a run is trained or evaluated.
    lines = [line for line in without_doing(captured.err).splitlines() if not line.startswith("dataset ")]
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["train", "--epoch", "3"], 2, ["--epoch", "--epochs"]),
        (["trian"], 2, ["trian"]),
        (["train", "--epochs", "0"], 2, ["epochs=0", "greater than or equal to 1"]),
        (["train", "--epochs", "five"], 2, ["epochs='five'"]),
        (["train", "--global-batch-size", "-1"], 2, ["global_batch_size=-1"]),
        (["train", "--num-workers", "0"], 2, ["--num-workers", "0"]),
        (["train", "--num-workers", "3:2"], 2, ["--num-workers", "'3:2': needs 1 <= MIN <= MAX"]),
        (["train", "--num-workers", "2:"], 2, ["--num-workers", "'2:' is neither a number nor MIN:MAX"]),
        (["train", "--learning-rate", "nan"], 2, ["learning_rate"]),
        (["train", "--dropout", "1.0"], 2, ["dropout=1.0", "less than 1"]),
        (["train", "--variant", "dropuot"], 2, ["variant='dropuot'", "did you mean dropout"]),
        (["train", "--dataset", "mnits"], 2, ["dataset='mnits'", "did you mean mnist"]),
        (["train", "--optimizer", "adamm"], 2, ["optimizer='adamm'", "did you mean adam"]),
        (["train", "--set", "dropuot=0.1"], 2, ["'dropuot'", "did you mean dropout"]),
        (["train", "--set", "dropout"], 2, ["--set 'dropout'", "KEY=VALUE"]),
        (["train", "--name", "../x", "--dataset", "digits"], 2, ["name='../x'"]),
        (["train", "--config", "/nowhere.yaml"], 2, ["/nowhere.yaml", "No such file"]),
        (["train", "--config", "a\nb"], 2, ["--config 'a\\nb'", "No such file"]),
        (["train", "--config", "", "--dataset", "digits"], 2, ["--config"]),
        (["train", "--name", "", "--dataset", "digits"], 2, ["name=''"]),
        (["tune", "--grid", "smoke", "--name", ""], 2, ["name=''"]),
        (["tune", "--grid", "nope.yaml"], 2, ["--grid 'nope.yaml'", "No such file"]),
        (
            ["tune", "--grid", "/dev/null", "--search", "optuna", "--num-samples", "2"],
            2,
            ["search='optuna'", "no axis and no range"],
        ),
        (["train", "--dataset", "digits", "--storage", "ftp://x/y"], 2, ["ftp"]),
        (["train", "--dataset", "digits", "--storage", "s3://key:secret@bucket/x"], 2, ["credentials"]),
        (["train", "--dataset", "digits", "--storage", "/dev/null/x"], 4, ["/dev/null/x"]),
        (["train", "--dataset", "idx:/nowhere"], 3, ["/nowhere"]),
        (["train", "--dataset", "digits", "--train-limit", "20", "--num-workers", "90"], 3, ["num_workers=90"]),
        (["evaluate", "--dataset", "digits"], 2, ["--run"]),
        (["evaluate", "--run", "a", "--split", "tset", "--dataset", "digits"], 2, ["split='tset'"]),
        (["train", "--dataset", "digits", "--address", "ray://x:10001"], 2, ["ray://"]),
        (
            ["train", "--dataset", "digits", "--address", "http://127.0.0.1:9", "--storage", "/tmp/x"],
            5,
            ["127.0.0.1:9"],
        ),
        *[
            ([*command, "--address", "http://127.0.0.1:9", "--storage", storage], 2, [part])
            for command in (["train"], ["evaluate", "--run", "a"], ["tune", "--grid", "smoke", "--name", "g"])
            for storage, part in [("s3://key:secret@bucket/x", "credentials"), ("ftp://x/y", "ftp"), ("x", "--address")]
        ],
        *[
            ([*command, "--address", "http://127.0.0.1:9", "--storage", "/tmp/x", "--dataset", dataset], 2, [part])
            for command in (["train"], ["evaluate", "--run", "a"], ["tune", "--grid", "smoke", "--name", "g"])
            for dataset, part in [("folder:s3://key:secret@b/x", "credentials"), ("parquet:s3:/b/x", "two slashes")]
        ],
        (["train", "--dataset", "digits", "--epochs", "1:30"], 2, ["epochs='1:30'"]),
        (["train", "--dataset", "digits", "--data-dir", " "], 2, ["--data-dir ' '"]),
        (["tune", "--grid", "smoke", "--gpus-per-stack", "nan"], 2, ["--gpus-per-stack", "nan"]),
        *[
            (["tune", "--grid", "smoke", *options], 2, parts)
            for options, parts in (
                (["--until-settled", "--margin", "0"], ["--margin", "0"]),
                (["--until-settled", "--margin", "nan"], ["--margin", "nan"]),
                (["--until-settled", "--looks", "5,3"], ["--looks '5,3'", "more seeds than the one before"]),
                (["--until-settled", "--looks", "3,3"], ["--looks '3,3'", "more seeds than the one before"]),
                (["--until-settled", "--looks", "1"], ["--looks '1'", "2 seeds or more"]),
                (["--until-settled", "--looks", "3,x"], ["--looks '3,x'", "such as 3,5,8,12"]),
                (["--until-settled", "--looks", ""], ["--looks ''", "such as 3,5,8,12"]),
                (["--until-settled", "--looks", "3,1000001"], ["--looks '3,1000001'", "at most 1000000 seeds"]),
                (["--until-settled", "--looks", f"3,{10**30}"], ["at most 1000000 seeds"]),
                (["--until-settled", "--looks", "3,1000000"], ["4000000 runs"]),
                (["--until-settled", "--looks", "3,5", "--seeds", "4"], ["--looks 3,5", "--seeds 5"]),
                (["--until-settled", "--seeds", "1"], ["needs 2 seeds", "--seeds 2"]),
                (["--until-settled", "--seeds", "7,"], ["needs 2 seeds", "the grid has 1"]),
                (["--budget", "0"], ["--budget '0'", "20m"]),
                (["--budget", "0m"], ["--budget '0m'", "20m"]),
                (["--budget", "20"], ["--budget '20'", "20m"]),
                (["--budget", "-5m"], ["--budget '-5m'", "20m"]),
                (["--budget", ""], ["--budget ''", "20m"]),
                (["--budget", f"{'9' * 400}h"], ["finite", "20m"]),
                (["--budget", "20m", "--seeds", "1"], ["needs 2 seeds"]),
                (["--looks", "3,5"], ["--looks goes with --until-settled"]),
                (["--margin", "1"], ["--margin goes with --until-settled"]),
                (["--until-settled", "--scheduler", "asha"], ["--until-settled", "--scheduler asha"]),
                (["--budget", "5m", "--scheduler", "asha"], ["--budget", "--scheduler asha"]),
                (["--until-settled", "--search", "optuna", "--num-samples", "3"], ["--until-settled", "optuna"]),
                (["--until-settled", "--train-limit", "[100, 200]"], ["train_limit", "validation examples"]),
                (["--until-settled", "--max-runs", "40"], ["48 runs"]),
                (["--budget", "5m", "--workers-per-run", "2"], ["--budget", "--workers-per-run"]),
            )
        ],
        (["export", "a"], 2, ["--to", "onnx"]),
        *[
            (
                ["plan", "tune", "--grid", "regularization", "--dataset", "digits", *options],
                2,
                ["leave out", "--workers"],
            )
            for options in (
                ["--search", "optuna", "--num-samples", "2", "--workers-per-run", "2"],
                ["--search", "optuna", "--num-samples", "2", "--scheduler", "asha"],
                ["--scheduler", "asha", "--workers-per-run", "2"],
            )
        ],
        *[
            ([*command, name], 2, [f"evaluation={name!r}"])
            for command in (["report"], ["compare"], ["query", "SELECT 1", "--evaluation"])
            for name in ("../x", "", ".", "a/b", "a\nb")
        ],
        *[([command, "--storage", "/dev/null"], 4, ["storage='/dev/null'"]) for command in ("runs", "evaluations")],
    ],
)
def test_a_mistake_ends_with_its_exit_code_and_one_line(
    arguments: list[str], code: int, parts: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == code
    line = line_of(capsys)
    for part in parts:
        assert part in line
    assert "secret" not in line
    assert list(tmp_path.rglob("runs")) == []


def test_a_tilde_in_the_folders_of_data_is_the_home_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder("~/x") == tmp_path / "x"
    assert run_command(["train", "--dataset", "folder:~/images", "--storage", str(tmp_path / "s")]) == 3
    assert f"{tmp_path}/images is not a folder" in line_of(capsys)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "127.0.0.1:9", "auto"])
def test_the_address_of_a_cluster_does_not_make_a_local_run_a_job(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_ray(**_: object) -> None:
        raise AssertionError("a Ray was looked for")

    # Not a real one: "auto" would find anybody's on this machine.
    monkeypatch.setattr("ray.init", no_ray)
    monkeypatch.setenv("RAY_ADDRESS", address)
    tiny = ["--epochs", "1", "--train-limit", "100", "--storage", str(tmp_path)]
    assert run_command(["train", "--dataset", "digits", "--address", "local", *tiny]) == 0


def test_a_key_that_stands_twice_in_the_config_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("dropout: 0.1\nepochs: 2\ndropout: 0.2\n")
    assert run_command(["train", "--config", str(config)]) == 2
    assert re.search(r"line 3: the key 'dropout' occurs twice", line_of(capsys))


def test_train_evaluate_and_list_work_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", str(tmp_path / "results")]
    train = ["train", "--dataset", "digits", "--epochs", "2", "--name", "a", *storage]
    assert run_command(train) == 0
    assert "a is finished: best of 2 epochs" in capsys.readouterr().out
    assert run_command([*train, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["already_done"] is True

    assert run_command([*train, "--epochs", "1"]) == 6
    assert "epochs=2 there, 1 here" in line_of(capsys)

    evaluate = ["evaluate", "--run", "a", "--dataset", "digits", *storage, "--no-report", "--json"]
    assert run_command(evaluate) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["already_done"] is False
    assert first["metrics"][0]["num_examples"] == 355
    assert run_command(evaluate) == 0
    assert json.loads(capsys.readouterr().out) == {**first, "already_done": True}

    assert run_command(["runs", *storage, "--json"]) == 0
    assert [row["status"] for row in json.loads(capsys.readouterr().out)] == ["finished"]
    assert run_command(["evaluations", *storage]) == 0
    assert first["evaluation"] in capsys.readouterr().out


def test_evaluating_a_missing_or_tampered_run_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", str(tmp_path / "results")]
    assert run_command(["evaluate", "--run", "nobody", "--dataset", "digits", *storage]) == 3
    assert "'nobody'" in line_of(capsys)
    assert run_command(["train", "--dataset", "digits", "--epochs", "1", "--name", "a", *storage]) == 0
    assert "a is finished: best of 1 epoch is 1," in capsys.readouterr().out
    weights = tmp_path / "results/runs/a/best/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    assert run_command(["evaluate", "--run", "a", "--dataset", "digits", *storage]) == 3
    assert "SHA-256 differs" in line_of(capsys)
    assert not (tmp_path / "results/evaluations").exists()


def test_a_diverging_run_ends_with_7_and_is_never_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", str(tmp_path / "results")]
    arguments = ["train", "--dataset", "digits", "--learning-rate", "1e30", "--name", "a", *storage]
    assert run_command(arguments) == 7
    line = line_of(capsys)
    assert "epoch 1, step" in line
    assert not (tmp_path / "results/runs/a/best").exists()


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "stopped"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.series),
    ],
)
def test_a_run_that_a_signal_ends_exits_with_its_code_and_resume_gives_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, code: int, word: str
) -> None:
    # Long enough to be interrupted in the middle, however late the epoch lines are seen.
    base = ["train", "--dataset", "digits", "--epochs", "40", "--batch-norm", "--dropout", "0.3", "--name", "a"]
    whole, cut = ([*base, "--storage", str(tmp_path / name)] for name in ("whole", "cut"))
    assert run_command(whole) == 0
    with launched(*cut) as (process, errors):
        while "epoch 2/40" not in errors.readline():
            assert process.is_alive()
        os.kill(process.pid, number)
        rest = errors.read()
        assert wait(process) == code, rest
    assert "Traceback" not in rest
    assert "" not in rest.splitlines()
    assert [line for line in rest.splitlines() if "mnist-ray:" in line] == [
        f"mnist-ray: {word}; the same command goes on"
    ]
    assert run_command([*cut, "--no-resume"]) == 6
    assert run_command(cut) == 0
    one, two = (tmp_path / name / "runs/a/best/model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == two.read_bytes()


def test_a_storage_that_is_a_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for command in ("runs", "evaluations", "grids"):
        assert run_command([command, "--storage", str(tmp_path / "file"), "--json"]) == 4
        assert f"storage='{tmp_path}/file': a file stands where a folder is needed" in line_of(capsys)


def test_a_wrong_setting_of_a_config_file_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, part in (("dropout: 1.5\n", "dropout=1.5"), ("dropuot: 0.3\n", "did you mean dropout")):
        (tmp_path / "a.yaml").write_text(text)
        assert run_command(["train", "--config", str(tmp_path / "a.yaml")]) == 2
        line = line_of(capsys)
        assert line.startswith(f"mnist-ray: error: --config '{tmp_path}/a.yaml': ")
        assert part in line


def test_what_is_printed_as_the_next_command_can_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage, data = str(tmp_path / "it's here"), str(tmp_path / "my data")
    tiny = ["--dataset", "digits", "--epochs", "1", "--train-limit", "100"]
    assert run_command(["train", *tiny, "--name", "a", "--storage", storage, "--data-dir", data]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: mnist-ray "))
    assert command[-4:] == ["--storage", storage, "--data-dir", data]
    assert run_command([*command, "--no-report"]) == 0
    # A plan says what the command itself would say.
    capsys.readouterr()
    assert run_command(["plan", "train", *tiny, "--dropout", "0.1", "--name", "a", "--storage", storage]) == 6
    assert "dropout=0.0 there, 0.1 here" in line_of(capsys)


def test_a_run_that_diverged_is_not_advised_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--dataset", "digits", "--epochs", "1", "--optimizer", "sgd", "--learning-rate", "1e30"]
    command += ["--name", "a", "--storage", str(tmp_path)]
    assert run_command(command) == 7
    capsys.readouterr()
    assert run_command(command) == 7
    line = line_of(capsys)
    assert "run 'a': diverged (" in line
    assert "change its settings and choose another --name" in line


def test_ctrl_c_before_a_command_has_begun_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    # As if the signal came while the launcher's modules are imported.
    monkeypatch.delitem(sys.modules, "mnist_ray.cli.main")
    monkeypatch.setattr("builtins.__import__", importing(interrupted))
    with pytest.raises(SystemExit) as ended:
        process.main()
    assert ended.value.code == 130
    assert without_doing(capsys.readouterr().err) == "mnist-ray: stopped\n"


def importing(before: Callable[..., None]) -> Callable[..., Any]:
    """Python's import, with something done before the launcher's module is imported."""
    real = builtins.__import__

    def instead(name: str, *rest: Any, **named: Any) -> Any:
        if name == "mnist_ray.cli.main":
            before()
        return real(name, *rest, **named)

    return instead


def test_an_error_that_an_interrupt_leaves_behind_is_the_interrupts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def half_imported(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise RecursionError("of a package that was imported by half") from None

    monkeypatch.setattr("mnist_ray.results.listing.run_rows", half_imported)
    assert run_command(["runs"]) == 130
    assert line_of(capsys) == "mnist-ray: stopped; the same command starts again"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
