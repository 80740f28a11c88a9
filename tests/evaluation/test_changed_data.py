"""An evaluation's name follows from what is asked; its manifest tells whether the data is still the same."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.data import examples
from mnist_ray.results.evaluation_folder import committed_evaluations
from mnist_ray.storage.storage import open_storage
from tests.support.colour_images import write_colour_folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of photos, and a storage beside it with a run that was trained on it."""
    folder = Path(write_colour_folder(tmp_path / "photos", 10))
    train = ["train", "--dataset", f"folder:{folder}", "--epochs", "1", "--name", "a", "--set", "hidden_sizes=8"]
    assert run_command([*train, "--storage", str(tmp_path / "s")]) == 0
    assert evaluate(folder) == 0
    return folder


def evaluate(photos: Path, *more: str) -> int:
    at = ["--storage", str(photos.parent / "s")]
    return run_command(["evaluate", "--run", "a", "--dataset", f"folder:{photos}", "--no-report", *more, *at])


def said(capsys: Any) -> str:
    """The last line on stderr; before it comes what was understood."""
    return str(capsys.readouterr().err.splitlines()[-1])


def names(photos: Path) -> list[str]:
    return [folder.name for folder in committed_evaluations(open_storage(str(photos.parent / "s")))]


def test_the_same_again_reads_no_image(photos: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples.ExampleStream, "scan", lambda _: pytest.fail("reads the images"))
    capsys.readouterr()
    assert evaluate(photos) == 0
    assert "was there already" in capsys.readouterr().out
    (name,) = names(photos)
    assert name.startswith("a-on-photos-test-")
    manifest = open_storage(str(photos.parent / "s")).read_manifest(f"evaluations/{name}")
    assert manifest is not None
    sources = manifest["volatile"]["sources"]
    paths = [path for path in sorted(photos.rglob("*")) if path.is_file()]
    assert sources["num_files"] == len(paths)
    assert sources["num_bytes"] == sum(path.stat().st_size for path in paths)
    assert [file[0] for file in sources["files"]] == [str(path.relative_to(photos)) for path in paths]


def test_files_that_were_only_touched_are_the_same_data(photos: Path, capsys: Any) -> None:
    for path in photos.rglob("*.png"):
        os.utime(path, (1, 1))
    capsys.readouterr()
    assert evaluate(photos) == 0
    assert "was there already" in capsys.readouterr().out


def test_changed_images_are_a_conflict_that_names_them(photos: Path, capsys: Any) -> None:
    # Every fifth image of a class is for test.
    other, *_, one = sorted(photos.glob("blue/*.png"))[:5]
    shutil.copyfile(other, one)
    (before,) = names(photos)
    capsys.readouterr()
    assert evaluate(photos) == 6
    assert said(capsys) == (
        f"mnist-ray: error: evaluation {before!r}: exists, and folder:{photos} has changed since "
        f"(changed: {one.relative_to(photos)}); keep both with --name OTHER"
    )
    assert evaluate(photos, "--name", "later") == 0
    assert names(photos) == [before, "later"]
    # Each finds its own.
    assert evaluate(photos, "--name", "later") == 0


def test_new_and_missing_images_are_named_too(photos: Path, capsys: Any) -> None:
    one, *_, last = sorted(photos.rglob("*.png"))
    one.rename(one.with_name("zz.png"))
    shutil.copyfile(last, last.with_name("zzz.png"))
    capsys.readouterr()
    assert evaluate(photos) == 6
    new = ", ".join(str(path.relative_to(photos)) for path in (one.with_name("zz.png"), last.with_name("zzz.png")))
    assert f"(new: {new}; gone: {one.relative_to(photos)})" in said(capsys)


def test_a_moved_folder_is_another_evaluation_of_the_same_data(photos: Path) -> None:
    moved = photos.rename(photos.with_name("moved"))
    assert evaluate(moved) == 0
    one, other = committed_evaluations(open_storage(str(photos.parent / "s")))
    assert (one.dataset, other.dataset) == (f"folder:{photos}", f"folder:{moved}")
    ids = {row["dataset_id"] for folder in (one, other) for row in folder.rows("metrics")}
    assert ids == {one.dataset_id}


def test_a_name_that_belongs_to_another_request_is_a_conflict(photos: Path, capsys: Any) -> None:
    assert evaluate(photos, "--name", "mine") == 0
    for more, why in (
        (["--split", "train"], "for split='test', not 'train'"),
        (["--shard-size", "7"], "for shard_size=10000, not 7"),
    ):
        capsys.readouterr()
        assert evaluate(photos, "--name", "mine", *more) == 6
        assert said(capsys) == f"mnist-ray: error: evaluation 'mine': exists {why}; choose another --name"
    capsys.readouterr()
    assert evaluate(photos, "--name", "../x") == 2
    assert "evaluation='../x'" in said(capsys)


@pytest.mark.s3
def test_on_s3_the_etag_tells_whether_an_image_has_changed(
    tmp_path: Path, s3_uri: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, storage = Path(write_colour_folder(tmp_path / "photos", 10)), open_storage(s3_uri)
    paths = sorted(folder.rglob("*.png"))
    for path in paths:
        storage.write_bytes(str(path.relative_to(tmp_path)), path.read_bytes())
    at = ["--dataset", f"folder:{s3_uri}/photos", "--storage", f"{s3_uri}/results"]
    assert run_command(["train", "--epochs", "1", "--name", "a", "--set", "hidden_sizes=8", *at]) == 0
    evaluate = ["evaluate", "--run", "a", "--no-report", *at]
    assert run_command(evaluate) == 0
    with monkeypatch.context() as patch:
        patch.setattr(examples.ExampleStream, "scan", lambda _: pytest.fail("reads the images"))
        assert run_command(evaluate) == 0
    # Written again: another time, the same ETag.
    storage.write_bytes("photos/blue/004.png", (folder / "blue/004.png").read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(examples.ExampleStream, "scan", lambda _: pytest.fail("reads the images"))
        assert run_command(evaluate) == 0
    storage.write_bytes("photos/blue/004.png", (folder / "red/004.png").read_bytes())
    capsys.readouterr()
    assert run_command(evaluate) == 6
    assert "(changed: blue/004.png)" in said(capsys)
