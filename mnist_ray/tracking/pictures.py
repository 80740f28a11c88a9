"""The pictures that trackers get, as PNG."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import pad

_SAMPLES, _IN_A_ROW, _BETWEEN = 24, 8, 128
# Pixels; larger samples are shrunk, smaller ones enlarged by a whole number.
_WIDTH, _MOST_PIXELS = 640, 1280
_MOST_NUMBERED = 30
_INK, _GRID = (32, 32, 32), (221, 221, 221)
_RIGHT, _WRONG = np.array((0, 114, 178)), np.array((213, 94, 0))


def samples(images: Tensor) -> bytes:
    """Draws 24 images of a data set, evenly spaced.

    Args:
      images: uint8 [n, channels, height, width].
    """
    chosen = torch.linspace(0, len(images) - 1, _SAMPLES).long()
    # [rows, columns, channels, height, width] -> [height of all, width of all, channels]
    tiles = pad(images[chosen], (1, 1, 1, 1), value=_BETWEEN).unflatten(0, (-1, _IN_A_ROW))
    pixels = torch.cat([torch.cat([*row], dim=2) for row in tiles], dim=1).permute(1, 2, 0)
    sheet = Image.fromarray(pixels.expand(-1, -1, 3).numpy())
    factor = max(1, _WIDTH // sheet.width)
    sheet = sheet.resize((factor * sheet.width, factor * sheet.height), Image.Resampling.NEAREST)
    sheet.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    return _png(sheet)


def confusion(counts: NDArray[np.int64], class_names: Sequence[str]) -> bytes:
    """Draws a confusion matrix: a row for each true class, a column for each predicted one, in the same order.

    Blue: right, orange: wrong, the more intense the larger the share of the true class. Up to 30 classes have numbers.

    Args:
      counts: int64 [classes, classes].
    """
    num_classes, has_numbers = len(counts), len(counts) <= _MOST_NUMBERED
    side, font = (36, ImageFont.load_default(11)) if has_numbers else (max(1, 900 // num_classes), None)
    left = 100 if has_numbers else 0
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colors = np.where(np.eye(num_classes, dtype=bool)[..., None], _RIGHT, _WRONG)
    # A share of 1 % must be seen beside one of 99 %.
    pixels = 255 - np.sqrt(shares)[..., None] * 0.8 * (255 - colors)
    sheet = Image.new("RGB", (left + side * num_classes, side * num_classes), "white")
    matrix = Image.fromarray(pixels.round().astype(np.uint8)).resize(
        (side * num_classes,) * 2, Image.Resampling.NEAREST
    )
    sheet.paste(matrix, (left, 0))
    draw = ImageDraw.Draw(sheet)
    for row in range(num_classes if font else 0):
        draw.line((0, row * side, sheet.width, row * side), _GRID)
        draw.text((left - 6, (row + 0.5) * side), class_names[row][:16], _INK, font, anchor="rm")
        for column in np.flatnonzero(counts[row]):
            place = (left + (column + 0.5) * side, (row + 0.5) * side)
            draw.text(place, str(counts[row, column]), _INK, font, anchor="mm")
    return _png(sheet)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
