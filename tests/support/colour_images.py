"""Images in colour: of four classes that only colour tells apart, and of 16 bits a channel."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# Class -> red and blue minus grey; green makes up for them.
COLOURS = {"red": (45, 0), "cyan": (-45, 0), "blue": (0, 70), "yellow": (0, -70)}


def colour_images(count: int, *, width: int = 32, height: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns class -> uint8 [count, height, width, 3]; as grey, the images of a number are the same in all classes."""
    noise = np.random.default_rng(seed)
    grey = noise.integers(80, 176, (count, height, width)) + noise.integers(-5, 6, (count, 1, 1))
    images = {}
    for name, (red, blue) in COLOURS.items():
        # Pillow's luma is (19595 red + 38470 green + 7471 blue) / 65536, rounded.
        green = np.rint((65536 * grey - 19595 * (grey + red) - 7471 * (grey + blue)) / 38470).astype(int)
        images[name] = np.stack([grey + red, green, grey + blue], axis=3).astype(np.uint8)
    return images


def write_colour_folder(root: Path, count: int, *, suffix: str = "png", **shape: int) -> Path:
    for name, images in colour_images(count, **shape).items():
        (root / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(root / name / f"{number:03d}.{suffix}")
    return root


def colour_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow can't write: uint16 [rows, columns, 3 or 4]."""
    rows, columns, channels = values.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">2I5B", columns, rows, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
