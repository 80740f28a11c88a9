"""Random crops, flips, affine and elastic distortions of whole batches, on the training device.

Imports torch inside the functions: the command line lists the names without it.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mnist_ray.noise.step_streams import StepStreams

_CONTROL_POINTS = 7


@dataclass(frozen=True)
class Augmentation:
    """The strength of the distortions.

    Attributes:
      rotation: largest angle, degrees.
      scale: largest relative change of size, independent for each axis.
      shear: largest shear, as a tangent.
      shift: largest translation, pixels.
      elastic: standard deviation of the elastic displacement, pixels.
      crop: black pixels that are added to each side before a crop of the image's size is cut out.
      flip: whether half of the images are mirrored.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    crop: int = 0
    flip: bool = False

    @property
    def distorts(self) -> bool:
        """Whether pixels are moved by anything but crop and flip."""
        return replace(self, crop=0, flip=False) != Augmentation()


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "shift": Augmentation(shift=2.0),
    "affine": Augmentation(rotation=10.0, scale=0.1, shear=0.1, shift=2.0),
    "elastic": Augmentation(elastic=1.0),
    "affine_elastic": Augmentation(rotation=10.0, scale=0.1, shear=0.1, shift=1.5, elastic=0.8),
    # torchvision's RandomCrop(size, padding=4) and RandomHorizontalFlip, usual for CIFAR-10.
    "crop_flip": Augmentation(crop=4, flip=True),
}


def crop_and_flip(name: str, images: "Tensor", *, streams: "StepStreams", rows: "Tensor") -> "Tensor":
    """Crops and mirrors each image at random, the same way for the same (seed, step, row); before normalization, where
    black is 0.

    Args:
      images: [runs, local_batch, channels, height, width].
      rows: int64 [local_batch], row numbers in the global batch.

    Returns:
      Like images.

    Reference: He, Zhang, Ren, Sun 2016, "Deep residual learning for image recognition", section 4.2.
    """
    import torch
    from torch.nn import functional

    settings = AUGMENTATIONS[name]
    if not (settings.crop or settings.flip) or not len(rows):
        return images
    pad = settings.crop
    padded = functional.pad(images.flatten(0, 1), (pad, pad, pad, pad))  # [runs * batch, channels, rows, columns]
    height, width = images.shape[-2:]
    down, right, flip = streams.uniform("crop_flip", rows, 3).flatten(0, 1).unbind(1)  # [runs * batch] in [0, 1)
    y = torch.arange(height, device=images.device) + (down * (2 * pad + 1)).long()[:, None]
    x = torch.arange(width, device=images.device).expand(len(padded), width)
    if settings.flip:
        x = torch.where(flip[:, None] < 0.5, width - 1 - x, x)
    x = x + (right * (2 * pad + 1)).long()[:, None]
    each = torch.arange(len(padded), device=images.device)[:, None, None]
    return padded.movedim(1, -1)[each, y[:, :, None], x[:, None, :]].movedim(-1, 1).reshape(images.shape)


def augment(name: str, images: "Tensor", *, streams: "StepStreams", rows: "Tensor") -> "Tensor":
    """Distorts each image at random, the same way for the same (seed, step, row).

    Args:
      images: float [runs, local_batch, channels, height, width]; pixels outside take the nearest edge pixel's value.
      rows: int64 [local_batch], row numbers in the global batch.

    Returns:
      Like images.

    Reference: Simard, Steinkraus, Platt 2003 (elastic distortion; here with a smooth random field drawn on 7x7
    control points and blended by Gaussians).
    """
    from torch.nn import functional

    settings = AUGMENTATIONS[name]
    # torch can't sample zero images; a rank has none of a last batch with fewer rows than ranks.
    if not settings.distorts or not len(rows):
        return images
    flat = images.flatten(0, 1)
    height, width = images.shape[-2:]
    grid = _affine_grid(settings, streams, rows=rows, height=height, width=width)
    if settings.elastic:
        grid = grid + _elastic_field(settings, streams, rows=rows, height=height, width=width)
    grid = grid.to(images.dtype)
    return functional.grid_sample(flat, grid, padding_mode="border", align_corners=False).view_as(images)


def _affine_grid(
    settings: Augmentation, streams: "StepStreams", *, rows: "Tensor", height: int, width: int
) -> "Tensor":
    """Returns the source of each output pixel, float64 [runs * batch, height, width, 2], in [-1, 1]."""
    import torch
    from torch.nn import functional

    draws = (2 * streams.uniform("affine", rows, 6) - 1).flatten(0, 1)  # [runs * batch, 6] in [-1, 1)
    angle, scale_x, scale_y, shear, shift_x, shift_y = draws.unbind(1)
    angle = angle * math.radians(settings.rotation)
    scale_x, scale_y = 1 + settings.scale * scale_x, 1 + settings.scale * scale_y
    cos, sin, slant = angle.cos(), angle.sin(), settings.shear * shear
    # The sides have length 2 each, so turning pixels of one side into the other's takes the sides' ratio.
    ratio, pixel_x, pixel_y = height / width, 2.0 / width, 2.0 / height
    first = torch.stack((cos * scale_x, (slant * cos - sin) * scale_y * ratio, settings.shift * pixel_x * shift_x), 1)
    second = torch.stack((sin * scale_x / ratio, (slant * sin + cos) * scale_y, settings.shift * pixel_y * shift_y), 1)
    return functional.affine_grid(torch.stack((first, second), 1), [len(draws), 1, height, width], align_corners=False)


def _elastic_field(
    settings: Augmentation, streams: "StepStreams", *, rows: "Tensor", height: int, width: int
) -> "Tensor":
    """Returns smooth random displacements, float64 [runs * batch, height, width, 2], in units of half the image."""
    import torch

    draws = streams.draws16("elastic", rows, 2 * _CONTROL_POINTS**2).flatten(0, 1).to(torch.float64) / 32768
    noise = draws.view(-1, 2, _CONTROL_POINTS, _CONTROL_POINTS)
    down, across = _gaussian_blend(height, noise.device), _gaussian_blend(width, noise.device)
    # Draws have variance 1/3 and rows of the blend unit norm, so sqrt(3) gives the requested standard deviation.
    pixels = settings.elastic * math.sqrt(3.0) * (down @ noise @ across.T)
    return torch.stack((pixels[:, 0] * (2.0 / width), pixels[:, 1] * (2.0 / height)), -1)


@cache
def _gaussian_blend(size: int, device: "torch.device") -> "Tensor":
    """Returns each control point's weight for each pixel, float64 [size, control points], rows of unit norm."""
    import torch

    points = torch.linspace(0, size - 1, _CONTROL_POINTS, dtype=torch.float64)
    pixels = torch.arange(size, dtype=torch.float64)
    spacing = max(size - 1, 1) / (_CONTROL_POINTS - 1)
    weights = torch.exp(-((pixels[:, None] - points) ** 2) / (2 * spacing**2))
    return (weights / weights.square().sum(dim=1, keepdim=True).sqrt()).to(device)
