"""Predicting images of one's own by run `a` of a storage, and the files that hold such images."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mnist_ray.cli.main import run_command
from mnist_ray.evaluation.inference import load_network
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing

UNKNOWN = "unknown image format"


def predict(storage: Path, images: Path | str, *more: str) -> int:
    return run_command(["predict", "--run", "a", "--images", str(images), "--storage", str(storage), *more])


def predicted(
    storage: Path, images: Path | str, *more: str, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Predicts; returns what --json says, and the rows of both tables."""
    capsys.readouterr()
    assert predict(storage, images, "--json", *more) == 0
    said = json.loads(capsys.readouterr().out)
    return said, *(rows_of(Path(said["uri"]), name) for name in ("image_predictions/part-*", "image_errors/part-0"))


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(folder.glob(f"{name}.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = without_doing(captured.err).splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def left_in(storage: Path) -> list[str]:
    """Returns what predicting has left: the names of committed predictions, and unfinished work."""
    return sorted(path.name for place in ("predictions", ".staging") for path in storage.glob(f"{place}/*"))


def expected_probabilities(storage: Path, images: np.ndarray) -> np.ndarray:
    """Plain PyTorch's, for uint8 [n, 28, 28] of bright ink."""
    checkpoint = RunFolder(open_storage(str(storage)), "a").best()
    mean, std = checkpoint.document["normalization"].values()
    with torch.inference_mode():
        logits: Tensor = load_network(checkpoint)((torch.from_numpy(images)[:, None] / 255 - mean) / std)
    return logits.softmax(1).numpy()


def png(pixels: np.ndarray, **options: Any) -> bytes:
    return encoded(Image.fromarray(pixels), "PNG", **options)


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format_name, **options)
    return content.getvalue()


def padded(image: Image.Image, side: int = 28) -> np.ndarray:
    """An image in the middle of a square, with its proportions, on the median of its outermost pixels."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0).astype(int)
    color = tuple(ground) if ground.ndim else int(ground)
    return np.asarray(ImageOps.pad(image, (side, side), Image.Resampling.BILINEAR, color))


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def idx_bytes(images: np.ndarray) -> bytes:
    return b"\0\0\x08\x03" + np.array(images.shape, dtype=">u4").tobytes() + images.tobytes()


def parquet(table: pa.Table, **options: Any) -> bytes:
    content = io.BytesIO()
    pq.write_table(table, content, **options)
    return content.getvalue()
