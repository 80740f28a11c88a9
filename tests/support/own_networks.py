"""Code of a user's own networks, as a person writes it."""

from pathlib import Path

NETS = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, image_shape, num_classes, width=8):
        super().__init__()
        channels, height, columns = image_shape
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(width * (height // 4) * (columns // 4), num_classes)

    def forward(self, images):
        values = nn.functional.max_pool2d(nn.functional.gelu(self.norm(self.conv(images))), 4)
        return self.fc(self.drop(values).flatten(1))


def make_net(image_shape, num_classes, width=8):
    return Net(image_shape, num_classes, width)


def mlp(image_shape, num_classes, width=16):
    channels, height, columns = image_shape
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * height * columns, width), nn.ReLU(), nn.Linear(width, num_classes)
    )
"""


def write_nets(folder: Path, more: str = "", name: str = "my_nets.py") -> Path:
    """Writes the networks, and more code, as a file; returns its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{NETS}\n\n{more}")
    return path
