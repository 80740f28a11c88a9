"""Help, names and suggestions: what a person reads who has no page open, and what is understood of what they type."""

import json
from pathlib import Path

import click
import pytest
from PIL import Image

from mnist_ray.cli.help import HEADINGS, Command, Group
from mnist_ray.cli.main import cli, run_command
from mnist_ray.cli.submission import forwarded
from mnist_ray.config.own_settings import MODELS
from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.augmentation import AUGMENTATIONS
from mnist_ray.data.idx import USUAL_NAMES
from mnist_ray.optimizers.optimizers import OPTIMIZERS, SCHEDULES
from mnist_ray.setting import setting_of


def walk(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    children = command.commands.items() if isinstance(command, click.Group) else ()
    return [(path, command), *(each for name, child in children for each in walk(child, (*path, name)))]


ALL = walk(cli)
GROUPED = ("train", "tune", "evaluate", "predict")


def help_of(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int = 100
) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run_command([*path, "--help"]) == 0
    return capsys.readouterr().out


def records(command: click.Command) -> dict[str, str]:
    """First column of each visible option -> its help."""
    context = click.Context(command)
    lines = [each.get_help_record(context) for each in command.params if isinstance(each, click.Option)]
    return dict(line for line in lines if line)


def setting_in(line: str) -> str:
    """The setting whose option begins a line of a help."""
    return line.split()[0].strip(",").lstrip("-").replace("-", "_")


@pytest.mark.parametrize("columns", [80, 100, 200])
@pytest.mark.parametrize("path", [path for path, _ in ALL], ids=" ".join)
def test_no_line_of_a_help_is_wider_than_the_terminal_or_110_columns(
    path: tuple[str, ...], columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = help_of(path, capsys, monkeypatch, columns).splitlines()
    assert [line for line in lines if len(line) > min(columns, 110) or line != line.rstrip()] == []


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_every_option_says_its_default_once_at_most(path: tuple[str, ...], command: click.Command) -> None:
    for names, text in records(command).items():
        assert text.lower().count("default:") + text.count("by default") <= 1, (path, names)


@pytest.mark.parametrize("name", ["train", "tune"])
def test_every_setting_says_its_default(name: str) -> None:
    lines = {setting_in(names): text for names, text in records(cli.commands[name]).items()}
    assert {*TrainConfig.model_fields} - {*lines} == {"code_sha256", *(["seed"] if name == "tune" else [])}
    for setting in {*TrainConfig.model_fields} & {*lines}:
        assert "[default: " in lines[setting] or "by default" in lines[setting], setting


@pytest.mark.parametrize("group", [(path, each) for path, each in ALL if isinstance(each, click.Group)])
def test_the_list_of_commands_has_the_whole_first_sentence_of_each(
    group: tuple[tuple[str, ...], click.Group], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, command = group
    assert isinstance(command, Group)
    text = " ".join(help_of(path, capsys, monkeypatch).split())
    assert "..." not in text.partition("[ARGS]...")[2]
    for name, child in command.commands.items():
        paragraph = " ".join(str(child.help).partition("\n\n")[0].split())
        sentence = paragraph.partition(". ")[0].rstrip(".")
        assert f" {name} {sentence}." in text


def test_every_command_is_listed_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = help_of((), capsys, monkeypatch).partition("Show this message and exit.")[2].splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert sorted(listed) == sorted(cli.commands)


@pytest.mark.parametrize("name", GROUPED)
def test_options_are_under_headings_in_their_order(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = help_of((name,), capsys, monkeypatch).splitlines()
    headings = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [heading for heading in HEADINGS if heading in headings]
    under_options = lines[lines.index("Options:") + 1 :]
    assert [line.split("  ")[1] for line in under_options] == ["-h, --help"]
    assert isinstance(cli.commands[name], Command)


def test_a_setting_is_under_the_heading_that_it_declares(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heading_of, heading = {}, ""
    for line in help_of(("train",), capsys, monkeypatch).splitlines():
        heading = line.removesuffix(":") if line.endswith(":") and not line.startswith(" ") else heading
        if line.startswith("  --"):
            heading_of[setting_in(line)] = heading
    for name in {*TrainConfig.model_fields} - {"variant", "dataset", "code_sha256"}:
        assert heading_of[name] == setting_of(TrainConfig, name).group, name
    assert heading_of["dropout"] == "Network"
    assert heading_of["learning_rate"] == "Optimizer"
    assert heading_of["train_limit"] == heading_of["dataset"] == "Data"
    assert heading_of["device"] == heading_of["address"] == "Where it runs"


@pytest.mark.parametrize("name", ["train", "tune"])
@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("--optimizer", OPTIMIZERS),
        ("--schedule", SCHEDULES),
        ("--augmentation", AUGMENTATIONS),
        ("--model", [*MODELS, "FILE.py:FUNCTION"]),
        ("--precision", ["bf16", "tf32", "float32", "float64"]),
        ("--color", ["grey", "rgb"]),
        ("--fit", ["pad", "crop", "stretch"]),
        ("--device", ["cpu", "gpu"]),
    ],
)
def test_choices_are_shown(name: str, option: str, choices: list[str]) -> None:
    assert f"{option} [{'|'.join(choices)}]" in records(cli.commands[name])


@pytest.mark.parametrize(
    ("arguments", "setting", "value"),
    [
        (["--lr", "0.1"], "learning_rate", "0.1"),
        (["--wd", "0.1"], "weight_decay", "0.1"),
        (["--batch-size", "8"], "global_batch_size", "8"),
        (["--patience", "2"], "early_stopping_patience", "2"),
        (["--no-bn"], "batch_norm", False),
        (["--device", "gpu"], "device", "gpu"),
        (["--use-gpu"], "device", "gpu"),
        (["--no-use-gpu"], "device", "cpu"),
        (["--no-use-gpu", "--device", "gpu"], "device", "gpu"),
        ([], "device", None),
    ],
)
def test_usual_names_are_accepted_and_a_job_gets_the_one_of_the_help(
    arguments: list[str], setting: str, value: object
) -> None:
    context = cli.commands["train"].make_context("train", [*arguments], obj={})
    assert context.params[setting] == value
    line = forwarded(context, {})
    again = cli.commands["train"].make_context("train", [*line], obj={})
    assert again.params == context.params
    assert not {"--lr", "--wd", "--batch-size", "--patience", "--no-bn", "--use-gpu", "--no-use-gpu"} & {*line}


@pytest.mark.parametrize("name", GROUPED)
def test_the_older_form_of_device_is_not_in_the_help(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of((name,), capsys, monkeypatch)
    assert text.count("--device") == 1
    assert "use-gpu" not in text


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run_command(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["train", "--optimizer", "adamW"], "adamw"),
        (["train", "--schedule", "Cosin"], "cosine"),
        (["train", "--augmentation", "AFFINE"], "affine"),
        (["train", "--precision", "BF16"], "bf16"),
        (["train", "--fit", "Crop"], "crop"),
        (["train", "--color", "RGB", "--dataset", "folder:x"], "rgb"),
        (["train", "--model", "CNN"], "cnn"),
        (["train", "--variant", "DropOut"], "dropout"),
        (["train", "--dataset", "MNIST"], "mnist"),
        (["train", "--dataset", "Folder:/x"], "folder:/x"),
        (["train", "--set", "lr=1"], "learning_rate"),
        (["train", "--set", "LR=1"], "learning_rate"),
        (["train", "--set", "wd=1"], "weight_decay"),
        (["train", "--set", "bn=true"], "batch_norm"),
        (["train", "--set", "batch_size=8"], "global_batch_size"),
        (["train", "--set", "Dropout=[1, 2]"], "dropout"),
        (["tune", "--grid", "smoke", "--set", "lr=1,2"], "learning_rate"),
        (["tune", "--grid", "Smok"], "smoke"),
        (["tune", "--grid", "smoke", "--optimizer", "adam,SGD"], "sgd"),
        (["tune", "--grid", "smoke", "--scheduler", "ASHA"], "asha"),
        (["tune", "--grid", "smoke", "--log", "MLflow"], "mlflow"),
        (["train", "--device", "GPU"], "gpu"),
        (["train", "--LR", "1"], "--lr"),
        (["train", "--epoch", "1"], "--epochs"),
        (["train", "--Weight_Decay", "1"], "--weight-decay"),
        (["Train"], "train"),
        (["trian"], "train"),
        (["jobs", "LIST"], "list"),
        (["plan", "Tune"], "tune"),
        (["evaluate", "--run", "a", "--split", "Test"], "test"),
        (["evaluate", "--run", "a", "--dataset", "Digits"], "digits"),
        (["predict", "--run", "a", "--images", "x", "--polarity", "AUTO"], "auto"),
        (["completion", "Bash"], "bash"),
        (["export", "a", "--to", "ONNX"], "onnx"),
    ],
)
def test_a_mistyped_value_suggests_what_is_meant(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"; did you mean {meant}?" in said(arguments, capsys)


@pytest.mark.parametrize("command", [["train"], ["tune", "--grid", "smoke"], ["evaluate", "--run", "a"]])
def test_a_place_of_images_suggests_its_prefix(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos/cat", "tables", "numbers"):
        Path(folder).mkdir(parents=True)
    for file in ("one.parquet", "tables/1.parquet", f"numbers/{USUAL_NAMES['test'][0]}.gz", "photos/cat/1.png"):
        Path(file).touch()
    for place, meant in (
        ("photos/", "folder:photos/"),
        (str(tmp_path / "photos"), f"folder:{tmp_path}/photos"),
        ("one.parquet", "parquet:one.parquet"),
        ("tables", "parquet:tables"),
        ("numbers", "idx:numbers"),
        ("s3://bucket/photos", "folder:s3://bucket/photos"),
        ("s3://bucket/x.parquet", "parquet:s3://bucket/x.parquet"),
    ):
        assert said([*command, "--dataset", place], capsys).endswith(f"; did you mean {meant}?")
    for place in ("nowhere/", "s3://key:secret@bucket/x", "Folder:s3://key:secret@bucket/x"):
        line = said([*command, "--dataset", place], capsys)
        assert "did you mean" not in line
        assert "secret" not in line


def planned(arguments: list[str], capsys: pytest.CaptureFixture[str], folder: Path) -> dict[str, object]:
    tiny = ["--dataset", "digits", "--train-limit", "100", "--epochs", "1", "--storage", str(folder)]
    assert run_command(["plan", "tune", *arguments, *tiny, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    return {name: plan[name] for name in ("name", "runs")}


@pytest.mark.parametrize(
    ("arguments", "name", "runs"),
    [
        (["--variant", "dropout", "--dropout", "0.1,0.2", "--seeds", "3"], "dropout-digits", 6),
        (["--lr", "1e-3,1e-2", "--optimizer", "adam,sgd"], "learning_rate-optimizer-digits", 4),
        (["--set", "batch_norm=true,false", "--hidden-sizes", "[[16,8],[4]]"], "batch_norm-hidden_sizes-digits", 4),
        (["--variant", "baseline,dropout"], "variant-digits", 2),
        (["--hidden-sizes", "16,8", "--seeds", "2"], "baseline-digits", 2),
        (["--variant", "cnn", "--seeds", "1,2"], "cnn-digits", 2),
        (["--grid", "smoke", "--dropout", "0.1,0.2,0.3"], "smoke-digits", 6),
    ],
)
def test_a_comma_list_is_an_axis_and_needs_no_grid(
    arguments: list[str], name: str, runs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planned(arguments, capsys, tmp_path) == {"name": name, "runs": runs}


@pytest.mark.parametrize("arguments", [[], ["--dropout", "0.1"], ["--hidden-sizes", "16,8"], ["--seeds", "1"]])
def test_a_grid_of_one_run_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --grid NAME or FILE, or several values of a setting" in said(["tune", *arguments], capsys)


@pytest.mark.parametrize(
    ("options", "setting", "count"),
    [
        (["--dropout", "0.1,0.2"], "dropout", 2),
        (["--dropout", "[0.1, 0.2, 0.3]"], "dropout", 3),
        (["--optimizer", "adam,sgd"], "optimizer", 2),
        (["--set", "epochs=1,2"], "epochs", 2),
        (["--hidden-sizes", "[[16,8],[4]]"], "hidden_sizes", 2),
        (["--dataset", "mnist,digits"], "dataset", 2),
        (["--variant", "cnn,tuned"], "variant", 2),
        (["--seed", "1,2"], "seed", 2),
        (["--config", "grid.yaml"], "dropout", 2),
    ],
)
def test_train_takes_one_value_and_names_tune(
    options: list[str],
    setting: str,
    count: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text("dropout: [0.1, 0.2]\n")
    expected = f"mnist-ray: error: {setting}: train takes one value, not {count}; `mnist-ray tune` makes a grid of them"
    assert said(["train", *options], capsys) == expected


def test_ones_own_data_is_summarized_before_it_is_trained_on_or_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label, shade in (("cat", 40), ("dog", 200)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (16, 16), shade + number).save(tmp_path / "photos" / label / f"{number}.png")
    dataset, storage = ["--dataset", f"folder:{tmp_path}/photos"], ["--storage", str(tmp_path / "results")]
    assert run_command(["train", *dataset, "--epochs", "1", "--name", "a", *storage]) == 0
    first = next(line for line in capsys.readouterr().err.splitlines() if "2 classes" in line or "epoch 1" in line)
    assert first.endswith(
        "2 classes (cat, dog); 28 training, 4 validation (validation_fraction 0.1, per class), 8 test images"
    )
    assert run_command(["evaluate", "--run", "a", "--no-report", *storage]) == 0
    assert "2 classes (cat, dog); 8 test images" in capsys.readouterr().err
