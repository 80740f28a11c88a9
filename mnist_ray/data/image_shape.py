"""The shape of a data set's images, and how images of other proportions are brought to it."""

import re
from typing import Literal, NamedTuple

Color = Literal["grey", "rgb"]
Fit = Literal["pad", "crop", "stretch"]

MAX_SIDE = 4096
_SIZE = re.compile(r"([0-9]{1,9})(?:x([0-9]{1,9}))?")


class ImageShape(NamedTuple):
    """Channels (1 for grey, 3 for red, green and blue), and rows and columns in pixels."""

    channels: int
    height: int
    width: int

    @property
    def words(self) -> str:
        """Size and colours for people, such as '40x60 RGB': columns x rows."""
        colours = {1: "grey", 3: "RGB"}.get(self.channels, f"with {self.channels} channels")
        return f"{self.width}x{self.height} {colours}"


MNIST_SHAPE = ImageShape(1, 28, 28)


class ImageForm(NamedTuple):
    """What every image of a set becomes.

    Attributes:
      shape: channels and size.
      fit: how an image of other proportions is brought to the size: pad keeps all of it and fills the rest with the
        median of its outermost pixels, crop keeps its middle, stretch changes its proportions.
    """

    shape: ImageShape
    fit: Fit = "pad"

    @property
    def options(self) -> "ImageOptions":
        """The options that ask for this form."""
        return ImageOptions(
            (self.shape.width, self.shape.height), "grey" if self.shape.channels == 1 else "rgb", self.fit
        )

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a config that ask for this form."""
        color = "grey" if self.shape.channels == 1 else "rgb"
        return {"image_size": f"{self.shape.width}x{self.shape.height}", "color": color, "fit": self.fit}

    @property
    def mode(self) -> str:
        """Pillow's mode."""
        return "L" if self.shape.channels == 1 else "RGB"

    def inner_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the columns and rows that all of an image takes up inside the shape; all, unless it is padded."""
        size = self.shape.width, self.shape.height
        if self.fit != "pad":
            return size
        scale = min(size[0] / width, size[1] / height)
        return min(max(round(width * scale), 1), size[0]), min(max(round(height * scale), 1), size[1])

    def change(self, width: int, height: int) -> str | None:
        """Returns 'padded', 'cropped' or 'stretched' for an image that changes so, None if it keeps its proportions."""
        whole = ImageForm(self.shape, "pad").inner_size(width, height)
        words: dict[Fit, str] = {"pad": "padded", "crop": "cropped", "stretch": "stretched"}
        return None if whole == (self.shape.width, self.shape.height) else words[self.fit]


class ImageOptions(NamedTuple):
    """What a user asks of the images; None for what the images are.

    Attributes:
      size: columns and rows.
      color, fit: see ImageForm.
    """

    size: tuple[int, int] | None = None
    color: Color | None = None
    fit: Fit = "pad"

    def form(self, width: int, height: int, *, is_colour: bool) -> ImageForm:
        """Returns the form of a set whose images are so."""
        width, height = self.size or (width, height)
        return ImageForm(
            ImageShape(3 if (self.color or ("rgb" if is_colour else "grey")) == "rgb" else 1, height, width), self.fit
        )


def parse_size(text: str) -> tuple[int, int]:
    """Returns columns and rows of a size: '32', or '40x60' for 40 columns and 60 rows.

    Raises:
      ValueError: another text, or a side of no pixels or too many.
    """
    match = _SIZE.fullmatch(text)
    if match:
        width, height = int(match[1]), int(match[2] or match[1])
        if 1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE:
            return width, height
    raise ValueError(f"give one side, such as 32, or WIDTHxHEIGHT, such as 40x60, each of 1 to {MAX_SIDE} pixels")
