"""Own images in colour and of other sizes, from training to prediction, by the command line."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mnist_ray.cli.main import run_command
from mnist_ray.evaluation.inference import load_network
from mnist_ray.grids.grid import expand, read_grid
from mnist_ray.results.run_documents import with_checksum
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from tests.support.colour_images import COLOURS, colour_images, write_colour_folder
from tests.support.idx_files import idx_bytes
from tests.support.predicting import line_of, png, predict, predicted
from tests.support.ray_jobs import run_apart

SMALL = ("--epochs", "6", "--name", "a", "--set", "global_batch_size=32")


def train(root: Path, dataset: str, *more: str) -> int:
    return run_command(["train", "--dataset", dataset, "--storage", str(root / "s"), *SMALL, *more])


def best(root: Path) -> Any:
    return RunFolder(open_storage(str(root / "s")), "a").best()


@pytest.mark.parametrize("variant", ["baseline", "cnn"])
def test_classes_that_only_colour_tells_apart_are_learned_in_colour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], variant: str
) -> None:
    dataset = f"folder:{write_colour_folder(tmp_path / 'images', 60)}"
    assert train(tmp_path, dataset, "--variant", variant) == 0
    checkpoint = best(tmp_path)
    assert checkpoint.document["metrics"]["val_accuracy"] == 1.0
    assert checkpoint.image_shape == (3, 32, 32)
    assert "4 classes (blue, cyan, red, yellow); 172 training, 20 validation" in capsys.readouterr().err
    assert run_command(["evaluate", "--run", "a", "--storage", str(tmp_path / "s"), "--json"]) == 0
    (metrics,) = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["accuracy"] == 1.0


def test_in_grey_they_are_guesses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = f"folder:{write_colour_folder(tmp_path / 'images', 60)}"
    assert train(tmp_path, dataset, "--color", "grey") == 0
    assert best(tmp_path).image_shape == (1, 32, 32)
    assert best(tmp_path).document["metrics"]["val_accuracy"] < 0.5
    assert "192 images of 32x32 RGB -> 32x32 grey" in capsys.readouterr().err


def test_a_run_in_colour_predicts_images_of_any_size_and_colours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, f"folder:{write_colour_folder(tmp_path / 'images', 30)}") == 0
    photos = tmp_path / "photos"
    for name, images in colour_images(2, width=96, height=64, seed=1).items():
        (photos / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(photos / name / f"{number}.png")
    Image.new("L", (40, 40), 100).save(photos / "red" / "grey.png")
    said, rows, errors = predicted(tmp_path / "s", photos, capsys=capsys)
    assert errors == []
    assert (said["num_images"], said["num_converted"], said["num_inverted"]) == (9, 9, 0)
    assert [row["predicted_label_name"] for row in rows if "grey" not in row["path"]] == sorted([*COLOURS] * 2)
    assert predict(tmp_path / "s", photos / "red" / "0.png") == 0
    shown = capsys.readouterr()
    assert "red/0.png" not in shown.out
    assert "0.png: red, probability" in shown.out
    assert "(converted to 32x32 RGB)" in shown.out
    assert predict(tmp_path / "s", photos, "--polarity", "dark-on-bright") == 2
    assert "takes images in colour, which have no polarity" in line_of(capsys)


def forget_images(storage: Path, run: str) -> None:
    """Rewrites a run's documents as they were before images could have any shape."""
    for path in (storage / "runs" / run).rglob("*.json"):
        document = json.loads(path.read_bytes())
        document.pop("document_sha256")
        document.pop("image_shape", None)
        for name in ("image_size", "color", "fit"):
            del document["config"][name]
        path.write_bytes(with_checksum(document))


def test_a_run_from_before_images_had_shapes_stays_what_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = f"folder:{write_colour_folder(tmp_path / 'images', 20, width=40, height=30)}"
    assert train(tmp_path, dataset, "--image-size", "28", "--color", "grey", "--fit", "stretch") == 0
    storage = tmp_path / "s"
    new = best(tmp_path)
    evaluate = ["evaluate", "--run", "a", "--storage", str(storage), "--json", "--no-report"]
    capsys.readouterr()
    assert run_command(evaluate) == 0
    (before,) = json.loads(capsys.readouterr().out)["metrics"]
    _, rows_before, _ = predicted(storage, tmp_path / "images", "--name", "before", capsys=capsys)

    forget_images(storage, "a")
    old = best(tmp_path)
    assert (old.image_shape, old.image_form.fit, old.config.image_size) == (new.image_shape, "stretch", None)
    assert run_command(evaluate) == 0
    (after,) = json.loads(capsys.readouterr().out)["metrics"]
    assert (after["log_loss"], after["dataset_id"]) == (before["log_loss"], before["dataset_id"])
    _, rows_after, _ = predicted(storage, tmp_path / "images", "--name", "after", capsys=capsys)
    assert [row["probabilities"] for row in rows_after] == [row["probabilities"] for row in rows_before]
    assert run_command(["reproduce", "a", "--storage", str(storage)]) == 0
    capsys.readouterr()
    assert train(tmp_path, dataset) == 6
    assert "it began when all images of one's own became 28x28 grey, stretched, as --image-size 28" in line_of(capsys)


def test_an_old_run_goes_on_and_is_reproduced_by_workers_as_it_began(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of 28x28 grey already, so the images stay the same; what is predicted may have other proportions.
    dataset = f"folder:{write_colour_folder(tmp_path / 'images', 20, width=28, height=28)}"
    old_form = ["--image-size", "28", "--color", "grey", "--fit", "stretch", "--epochs", "2"]
    assert train(tmp_path, dataset, *old_form) == 0
    storage = tmp_path / "s"
    forget_images(storage, "a")
    old = best(tmp_path)
    # The checkpoint of a later version notes the shape.
    path = storage / "runs/a/best/checkpoint.json"
    document = json.loads(path.read_bytes())
    del document["document_sha256"]
    path.write_bytes(with_checksum({**document, "image_shape": [1, 28, 28]}))
    assert best(tmp_path).image_form == old.image_form
    assert old.image_form.fit == "stretch"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.series
def test_workers_reproduce_an_old_run_with_the_images_that_it_had(tmp_path: Path) -> None:
    dataset = f"folder:{write_colour_folder(tmp_path / 'images', 20, width=40, height=30)}"
    old_form = ["--image-size", "28", "--color", "grey", "--fit", "stretch"]
    assert train(tmp_path, dataset, *old_form, "--precision", "float64") == 0
    forget_images(tmp_path / "s", "a")
    done = run_apart("reproduce", "a", "--num-workers", "2", "--storage", str(tmp_path / "s"))
    assert done.code == 0, done.log


def test_a_grid_that_has_begun_with_other_images_is_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = f"folder:{write_colour_folder(tmp_path / 'images', 20)}"
    (tmp_path / "grid.yaml").write_text("dropout: [0.0, 0.2]\nepochs: 1\nseeds: 1\n")
    grid = [
        "--grid",
        str(tmp_path / "grid.yaml"),
        "--dataset",
        dataset,
        "--name",
        "g",
        "--storage",
        str(tmp_path / "s"),
    ]
    settings = {"dropout": [0.0, 0.2], "epochs": 1, "dataset": dataset}
    run, _ = expand(read_grid(settings, seeds="1", overrides={}, source="test"), name="g", max_runs=9)
    assert train(tmp_path, dataset, "--name", run.run, "--image-size", "28") == 0
    forget_images(tmp_path / "s", run.run)
    document = json.loads((tmp_path / "s/runs" / run.run / "config.json").read_bytes())
    capsys.readouterr()
    assert run_command(["tune", *grid]) == 6
    said = f"run '{run.run}': exists with other data ({document['data_sha256'][:12]}, now "
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("side", "remedy"),
    [(1, "layer pool1 gets 1x1 of the images' 1x1 pixels and can't halve them; use larger images, or model=mlp"),
     (3, "layer pool2 gets 1x1 of the images' 3x3 pixels and can't halve them; use at most 1 hidden layer")],
)  # fmt: skip
def test_images_that_are_too_small_for_a_cnn_are_said_to_be(
    side: int, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = f"folder:{write_colour_folder(tmp_path / 'images', 10, width=side, height=side)}"
    assert train(tmp_path, dataset, "--variant", "cnn") == 2
    assert line_of(capsys).endswith(remedy)


def test_a_network_too_deep_for_the_images_is_refused_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = f"folder:{write_colour_folder(tmp_path / 'images', 10, width=9, height=30)}"
    assert train(tmp_path, dataset, "--variant", "cnn", "--hidden-sizes", "4,4,4,4") == 2
    assert (
        "layer pool4 gets 1x3 of the images' 9x30 pixels and can't halve them; use at most 3 hidden layers"
        in line_of(capsys)
    )
    (tmp_path / "grid.yaml").write_text("variant: cnn\nhidden_sizes: [[4], [4, 4, 4, 4]]\n")
    grid = ["tune", "--grid", str(tmp_path / "grid.yaml"), "--dataset", dataset, "--storage", str(tmp_path / "s")]
    assert run_command([*grid, "--name", "g", "--seeds", "1"]) == 2
    assert "layer pool4 gets 1x3" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.glob("s/*/*")) == []


def test_a_run_refuses_no_image_for_its_colours_in_parquet_and_idx(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = colour_images(10)
    encoded = [png(image) for some in images.values() for image in some]
    labels = [name for name in images for _ in range(10)]
    pq.write_table(pa.table({"image": encoded, "label": labels}), tmp_path / "train.parquet")
    assert train(tmp_path, f"parquet:{tmp_path}/train.parquet") == 0
    stacked = np.concatenate(list(images.values()))
    (tmp_path / "colour.idx").write_bytes(
        b"\0\0\x08\x04" + np.array(stacked.shape, ">u4").tobytes() + stacked.tobytes()
    )
    grey = stacked[:, ::2, :, 0]
    (tmp_path / "grey.idx").write_bytes(idx_bytes(grey))
    lists = pa.array([np.full(count, 9, np.uint8) for count in (1024, 784, 783)], pa.list_(pa.uint8()))
    pq.write_table(pa.table({"image": lists}), tmp_path / "lists.parquet")
    _, of_parquet, _ = predicted(tmp_path / "s", tmp_path / "train.parquet", capsys=capsys)
    said, of_idx, _ = predicted(tmp_path / "s", tmp_path / "colour.idx", capsys=capsys)
    assert said["num_converted"] == 0
    assert [row["probabilities"] for row in of_idx] == [row["probabilities"] for row in of_parquet]
    checkpoint = best(tmp_path)
    pixels = torch.from_numpy(stacked).movedim(3, 1)
    mean, std = (torch.tensor(checkpoint.document["normalization"][name])[:, None, None] for name in ("mean", "std"))
    with torch.inference_mode():
        expected = load_network(checkpoint)((pixels / 255 - mean) / std).softmax(1)
    np.testing.assert_allclose([row["probabilities"] for row in of_idx], expected.numpy(), atol=1e-5)
    said, _, _ = predicted(tmp_path / "s", tmp_path / "grey.idx", capsys=capsys)
    assert (said["num_images"], said["num_converted"]) == (40, 40)
    said, _, errors = predicted(tmp_path / "s", tmp_path / "lists.parquet", capsys=capsys)
    assert (said["num_images"], said["num_converted"]) == (2, 2)
    assert [(row["row"], row["error"]) for row in errors] == [(2, "783 pixels instead of 1024")]


def test_runs_that_take_other_images_are_evaluated_together_as_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = f"folder:{write_colour_folder(tmp_path / 'images', 20)}"
    of = {"a": [], "grey": ["--color", "grey"], "small": ["--image-size", "20x10", "--fit", "crop"]}
    for name, more in of.items():
        assert train(tmp_path, dataset, *more, "--name", name, "--epochs", "1") == 0

    def evaluated(*runs: str) -> dict[str, Any]:
        chosen = [word for run in runs for word in ("--run", run)]
        capsys.readouterr()
        assert run_command(["evaluate", *chosen, "--storage", str(tmp_path / "s"), "--json", "--no-report"]) == 0
        captured = capsys.readouterr()
        metrics = {row["run"]: row for row in json.loads(captured.out)["metrics"]}
        return {**json.loads(captured.out), "metrics": metrics, "said": captured.err}

    together = evaluated(*of)
    assert "16 images of 32x32 RGB -> 32x32 grey; 16 images of 32x32 RGB -> 20x10 RGB, cropped" in together["said"]
    assert together["metrics"]["a"]["accuracy"] > together["metrics"]["grey"]["accuracy"]
    for run in of:
        alone = evaluated(run)["metrics"][run]
        same = ("accuracy", "log_loss", "brier", "num_examples", "dataset_id")
        assert [alone[name] for name in same] == [together["metrics"][run][name] for name in same]
    assert len({row["dataset_id"] for row in together["metrics"].values()}) == 3
    assert evaluated(*of)["already_done"]
    (folder,) = (tmp_path / "s/evaluations").glob("3runs-on-images-test-*")
    shown = pq.read_table(folder / "images/part-0.parquet")["image"].to_pylist()
    assert {Image.open(io.BytesIO(content)).size for content in shown} == {(32, 32)}
    assert {Image.open(io.BytesIO(content)).mode for content in shown} == {"RGB"}
    assert run_command(["evaluate", "--all-runs", "--dataset", dataset, "--storage", str(tmp_path / "s")]) == 0
