"""Brings pixels of any size and colours to the form of their set."""

from typing import TYPE_CHECKING

from mnist_ray.data.image_shape import ImageForm

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    Pixels = npt.NDArray[np.uint8]


def to_form(pixels: "Pixels", form: ImageForm) -> "Pixels":
    """Converts one image's colours (to luma, or to three equal channels), then resizes it bilinearly, averaging when it
    shrinks.

    Args:
      pixels: uint8 [rows, columns] or [rows, columns, 3].

    Returns:
      uint8 [channels, height, width].
    """
    import numpy as np
    from PIL import Image

    fitted = np.asarray(_fitted(Image.fromarray(pixels).convert(form.mode), form))
    return fitted[None] if fitted.ndim == 2 else np.ascontiguousarray(fitted.transpose(2, 0, 1))


def all_to_form(images: "Pixels", form: ImageForm) -> "tuple[Pixels, npt.NDArray[np.bool_]]":
    """Converts images like to_form; also returns which of them became one shade, bool [n].

    Args:
      images: uint8 [n, rows, columns] or [n, rows, columns, 3].

    Returns:
      uint8 [n, channels, height, width].
    """
    import numpy as np

    if images.shape[1:] == (form.shape.height, form.shape.width, 3)[: 2 if form.shape.channels == 1 else 3]:
        whole = images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return whole, np.zeros(len(images), dtype=np.bool_)
    converted = np.stack([to_form(image, form) for image in images])
    is_one = (converted == converted[:, :, :1, :1]).all(axis=(1, 2, 3))
    was_one = (images == images[:, :1, :1]).reshape(len(images), -1).all(axis=1)
    return converted, is_one & ~was_one


def _fitted(image: "Image.Image", form: ImageForm) -> "Image.Image":
    from PIL import Image, ImageOps

    size = form.shape.width, form.shape.height
    if image.size == size:
        return image
    if form.fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    inner = form.inner_size(*image.size)
    resized = image.resize(inner, Image.Resampling.BILINEAR)
    if inner == size:
        return resized
    padded = Image.new(image.mode, size, _ground(image))
    padded.paste(resized, (round((size[0] - inner[0]) / 2), round((size[1] - inner[1]) / 2)))
    return padded


def _ground(image: "Image.Image") -> int | tuple[int, ...]:
    """Returns the median of an image's outermost pixels, in each channel: black bars beside a bright image would look
    like a dark ground."""
    import numpy as np

    pixels = np.atleast_3d(np.asarray(image))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = tuple(int(value) for value in np.median(border, axis=0))
    return ground[0] if len(ground) == 1 else ground
