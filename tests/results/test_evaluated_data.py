"""Runs are evaluated on the data that they were trained on, or it is said."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mnist_ray.cli.main import run_command
from mnist_ray.results.evaluated_data import trained_elsewhere
from tests.support.doing_lines import without_doing
from tests.support.tiny_digits import tiny_digits

SHIFTED, PETS = "shifted", "pets"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the runs d (digits), s (a folder with the same classes) and p (a folder with two others)."""
    root = tmp_path_factory.mktemp("storage")
    examples = tiny_digits(200)
    for number, (image, label) in enumerate(zip(examples.images, examples.labels.tolist(), strict=True)):
        for folder in (root / SHIFTED / str(label), root / PETS / ("cat" if label % 2 else "dog")):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")
    for run, dataset in {"d": "digits", "s": f"folder:{root / SHIFTED}", "p": f"folder:{root / PETS}"}.items():
        settings = ["--epochs", "1", "--hidden-sizes", "8", "--train-limit", "100", "--name", run]
        assert run_command(["train", "--dataset", dataset, *settings, "--storage", str(root / "results")]) == 0
    return root


def evaluate(root: Path, *arguments: str) -> int:
    return run_command(["evaluate", *arguments, "--storage", str(root / "results")])


def evaluated(root: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, str], list[str]]:
    """Returns the data set that each run was evaluated on, and the lines that were said."""
    capsys.readouterr()
    assert evaluate(root, *arguments, "--no-report", "--json") == 0
    shown = capsys.readouterr()
    datasets = {row["run"]: row["dataset"] for row in json.loads(shown.out)["metrics"]}
    return datasets, without_doing(shown.err).splitlines()


def test_the_default_is_the_data_set_of_the_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluated(root, capsys, "--run", "d") == (
        {"d": "digits"},
        ["dataset digits: 10 classes (0, 1, 2, 3, 4 and 5 more); 355 test images"],
    )
    found, _ = evaluated(root, capsys, "--run", "p")
    assert found == {"p": f"folder:{root / PETS}"}


def test_runs_of_several_data_sets_need_one_to_be_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for which in (["--all-runs"], ["--run", "d", "--run", "p", "--run", "s"]):
        assert evaluate(root, *which) == 2
        assert without_doing(capsys.readouterr().err) == (
            f"mnist-ray: error: dataset: the runs were trained on several (digits: d; folder:{root / PETS}: p; "
            f"folder:{root / SHIFTED}: s); choose one with --dataset NAME\n"
        )


def test_other_data_are_said_in_the_line_the_title_and_the_headline(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(root, "--run", "d", "--dataset", f"folder:{root / SHIFTED}") == 0
    shown = capsys.readouterr()
    assert without_doing(shown.err).splitlines()[0].endswith("; the run was trained on digits")
    title = f"test examples of folder:{root / SHIFTED}; the run was trained on digits"
    assert title in " ".join(shown.out.split())
    page = Path(shown.out.splitlines()[-1].removeprefix("report: ")).read_text()
    assert f"<h1>folder:{root / SHIFTED} (the run was trained on digits): " in page


def test_runs_on_their_own_data_are_not_said_to_be_trained_elsewhere(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(root, "--run", "d") == 0
    shown = capsys.readouterr()
    assert "trained on" not in shown.err + shown.out
    assert "Evaluated on 355 test examples of digits" in shown.out
    page = Path(shown.out.splitlines()[-1].removeprefix("report: ")).read_text()
    assert "<h1>digits: " in page


def test_all_runs_are_those_that_were_trained_on_the_data_set(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, lines = evaluated(root, capsys, "--all-runs", "--dataset", "digits")
    assert found == {"d": "digits"}
    assert lines[0] == (
        f"dataset digits: left out: 2 of 3 runs, trained on other data (folder:{root / PETS}: p; "
        f"folder:{root / SHIFTED}: s)"
    )


def test_all_runs_are_those_with_the_classes_of_data_that_none_was_trained_on(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = root / "elsewhere"
    if not elsewhere.exists():
        elsewhere.symlink_to(root / SHIFTED)
    found, lines = evaluated(root, capsys, "--all-runs", "--dataset", f"folder:{elsewhere}")
    assert found == {"d": f"folder:{elsewhere}", "s": f"folder:{elsewhere}"}
    assert lines[0] == (
        f"dataset folder:{elsewhere}: left out: 1 of 3 runs, with other classes or images (folder:{root / PETS}: p)"
    )
    assert lines[1].endswith(f"; the runs were trained on digits, folder:{root / SHIFTED}")


def test_all_runs_end_with_3_where_none_has_the_classes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("red", "green", "blue"):
        (root / "colours" / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(tiny_digits(1).images[0, 0].numpy()).save(root / "colours" / name / f"{number}.png")
    assert evaluate(root, "--all-runs", "--dataset", f"folder:{root / 'colours'}") == 3
    last = without_doing(capsys.readouterr().err).splitlines()[-1]
    assert (
        "no finished run was trained on it or has its 3 classes; the runs were trained on other data (digits: d" in last
    )


def test_the_words_say_how_many_runs_were_trained_on_other_data() -> None:
    assert trained_elsewhere(["a", "a/"], "a") is None
    assert trained_elsewhere(["b"], "a") == "the run was trained on b"
    assert trained_elsewhere(["c", "b", "b"], "a") == "the runs were trained on b, c"
    assert trained_elsewhere(["a", "b", "a"], "a") == "1 of 3 runs was trained on b"
