"""The training data of a run."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mnist_ray.data.examples import Found
from mnist_ray.data.image_shape import ImageShape

# One number for images of one channel, else one per channel.
PerChannel = float | tuple[float, ...]


@dataclass(frozen=True)
class TrainingData:
    """The examples of a run on its device; images uint8 [n, channels, height, width], labels int64 [n].

    Attributes:
      mean, std: of the training pixels as fractions of 255, one each for grey images and one per channel for others;
        the network's input is (pixel / 255 - mean) / std.
      bright_ground_share: share of the training images that polarity.has_bright_ground calls bright; None for images in
        colour.
      fingerprint: SHA-256 of the training split, in hexadecimal: the whole split of a named set; the examples within
        train_limit of the user's own data.
      conversion, found, wide_bits: see Examples.
      is_validation_given: whether the validation examples came with the data.
    """

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    mean: PerChannel
    std: PerChannel
    bright_ground_share: float | None
    class_names: tuple[str, ...]
    fingerprint: str
    conversion: str | None = None
    found: Found = field(default_factory=Found)
    is_validation_given: bool = False
    wide_bits: int | None = None

    @property
    def image_shape(self) -> ImageShape:
        """The shape of every image."""
        return ImageShape(*self.images.shape[1:])

    def to(self, device: torch.device) -> "TrainingData":
        """Returns the same examples on another device."""
        names = ("images", "labels", "validation_images", "validation_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})
