"""Writes small IDX files, by the format's definition and not with the code under test."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """uint8 or int32 elements with their header."""
    code = {"uint8": 0x08, "int32": 0x0C}[array.dtype.name]
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def some_images(count: int, side: int = 28, seed: int = 0) -> np.ndarray:
    """uint8 [count, side, side]."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), dtype=np.uint8)


def write_pair(folder: Path, prefix: str, images: np.ndarray, labels: list[int], *, packed: bool = False) -> None:
    """Writes <prefix>-images-idx3-ubyte and <prefix>-labels-idx1-ubyte."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", np.array(labels, dtype=np.uint8))):
        content = idx_bytes(array)
        path = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
