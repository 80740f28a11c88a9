"""Training and evaluating with all results in a real S3 server process."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_ray.cli.main import run_command
from mnist_ray.data.datasets import load_examples
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing
from tests.support.grid_runs import train_without_ray

pytestmark = pytest.mark.s3


def test_a_run_is_trained_resumed_evaluated_and_listed_on_s3(s3_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", s3_uri]
    train = ["train", "--dataset", "digits", "--epochs", "2", "--name", "a", *storage]
    assert run_command(train) == 0
    assert run_command([*train, "--seed", "1"]) == 6
    capsys.readouterr()
    evaluate = [
        "evaluate",
        "--run",
        "a",
        "--dataset",
        "digits",
        "--shard-size",
        "200",
        "--no-report",
        *storage,
        "--json",
    ]
    assert run_command(evaluate) == 0
    first = json.loads(capsys.readouterr().out)
    assert run_command(evaluate) == 0
    assert json.loads(capsys.readouterr().out) == {**first, "already_done": True}

    folder = f"evaluations/{first['evaluation']}"
    opened = open_storage(s3_uri)
    paths = [entry.path for entry in opened.list_files(folder) if "/predictions" in entry.path]
    assert len(paths) == 2
    rows = [row for path in paths for row in pq.read_table(opened.open_input(path)).to_pylist()]
    assert [row["example_index"] for row in rows] == list(range(355))
    assert sum(row["correct"] for row in rows) / 355 == first["metrics"][0]["accuracy"]

    assert run_command(["runs", *storage, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["status"] == "finished"
    assert run_command(["evaluations", *storage, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["runs"] == ["a"]


@pytest.mark.usefixtures("blank_charts")
def test_a_grid_is_trained_evaluated_and_reported_on_s3(s3_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    train_without_ray(s3_uri, "smoke", seeds="2", epochs=1)
    storage = ["--storage", s3_uri]
    assert run_command(["tune", "--grid", "smoke", "--seeds", "2", "--epochs", "1", "--name", "g", *storage]) == 0
    assert "8 runs, all were done already" in capsys.readouterr().out
    assert run_command(["evaluate", "--grid", "g", "--dataset", "digits", *storage, "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out)["evaluation"]
    for command in ("report", "compare"):
        assert run_command([command, evaluation, *storage]) == 0
    shown = capsys.readouterr().out
    assert "dropout 0.3 x bn" in shown
    opened = open_storage(s3_uri)
    for name in ("effects", "comparisons"):
        assert pq.read_table(opened.open_input(f"reports/{evaluation}/{name}/part-0.parquet")).num_rows > 0


def test_images_on_s3_are_predicted_as_the_same_on_the_disk(
    s3_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = ["--storage", f"{s3_uri}/results"]
    assert run_command(["train", "--dataset", "digits", "--epochs", "1", "--name", "a", *storage]) == 0
    digits = load_examples("digits", "test", data_dir=tmp_path).images[:30, 0].numpy()
    files = {f"images/{number}.png": png(pixels) for number, pixels in enumerate(digits)}
    files["images/bad.png"] = b"junk"
    files["some.parquet"] = parquet([*files.values()])
    files["some.gz"] = gzip.compress(b"\0\0\x08\x03" + np.array(digits.shape, ">u4").tobytes() + digits.tobytes())
    files["some-idx3-ubyte"] = gzip.decompress(files["some.gz"])
    for name, content in files.items():
        open_storage(s3_uri).write_bytes(name, content)
        open_storage(str(tmp_path)).write_bytes(name, content)
    for place, num_errors in (("images", 1), ("some.parquet", 1), ("some.gz", 0), ("some-idx3-ubyte", 0)):
        parts = []
        for root in (s3_uri, str(tmp_path)):
            arguments = ["--run", "a", "--images", f"{root}/{place}", "--shard-size", "20", "--num-workers", "1"]
            capsys.readouterr()
            assert run_command(["predict", *arguments, *storage, "--json"]) == 0
            said = json.loads(capsys.readouterr().out)
            assert (said["num_images"], said["num_errors"]) == (30, num_errors)
            folder = f"predictions/{said['predictions']}"
            opened = open_storage(f"{s3_uri}/results")
            names = ["image_errors/part-0", "image_predictions/part-00000", "image_predictions/part-00001"]
            parts.append([opened.read_committed(folder, f"{name}.parquet") for name in names])
        assert parts[0] == parts[1], place
    assert run_command(["predict", "--run", "a", "--images", f"{s3_uri}/images/3.png", *storage]) == 0
    assert capsys.readouterr().out.startswith("3.png: ")
    assert run_command(["predict", "--run", "a", "--images", f"{s3_uri}/nothing", *storage]) == 3
    assert f"there are no files in {s3_uri}/nothing" in capsys.readouterr().err
    assert run_command(["predict", "--run", "a", "--images", "s3://no-such-bucket-here/x", *storage]) == 4
    assert "the bucket does not exist" in capsys.readouterr().err


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def parquet(images: list[bytes]) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"image": images}), content, row_group_size=8)
    return content.getvalue()


def test_a_bucket_that_is_not_there_ends_with_4_and_one_line(s3_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["train", "--dataset", "digits", "--storage", "s3://no-such-bucket-here/x"]) == 4
    captured = capsys.readouterr()
    assert without_doing(captured.err).count("\n") == 1
    assert "no-such-bucket-here" in captured.err
