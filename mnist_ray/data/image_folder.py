"""folder:URI: one folder of images for each class."""

from mnist_ray.data.examples import (
    SPLITS,
    ExampleStream,
    Split,
    labels_of,
    numbered,
    rows_of_split,
    sorted_class_names,
)
from mnist_ray.data.images import DecodedImages
from mnist_ray.data.sources import list_files, list_words, read_files
from mnist_ray.errors import DataError
from mnist_ray.storage import open_storage

# Files are read whole: a film that lies among the pictures is refused before that.
MAX_IMAGE_BYTES = 256 << 20


def stream_image_folder(uri: str, split: Split) -> ExampleStream:
    """Finds images that lie in one folder for each class, at any depth below it.

    Subfolders train/ and test/, if both are there, are the splits and hold the class folders; otherwise the fifth,
    tenth, ... image of each class by name is a test image. Classes are the folder names in order, by value if all
    are whole numbers. Images are converted as images.DecodedImages says. Hidden files and the junk of file managers
    are left out.

    Args:
      uri: local folder, file:// or s3://.
      split: the split wanted.

    Raises:
      DataError: no such place, a file of more than 256 MiB, a file outside the class folders, fewer than two classes, a
        class without training images. A file that isn't an image is one too, when the images are read.
      StorageError: the storage can't be read.
    """
    source = f"dataset=folder:{uri}"
    storage = open_storage(uri)
    by_split = _paths_by_split(list_files(storage, source, max_bytes=MAX_IMAGE_BYTES).paths, source)
    class_names = _checked_class_names(by_split, source)
    paths = [path for path, _ in by_split[split]]
    labels = labels_of(*numbered(name for _, name in by_split[split]), class_names)
    whole = [path for pairs in by_split.values() for path, _ in pairs]

    def read() -> DecodedImages:
        return DecodedImages(read_files(storage, paths), source, lambda: read_files(storage, whole))

    return ExampleStream(labels, class_names, source, read)


def _paths_by_split(paths: list[str], source: str) -> dict[Split, list[tuple[str, str]]]:
    """Path and class of the images of each split."""
    if {"train", "test"} <= {path.split("/")[0] for path in paths if "/" in path}:
        return {
            "train": _with_class([path for path in paths if path.startswith("train/")], "train/", source),
            "test": _with_class([path for path in paths if path.startswith("test/")], "test/", source),
        }
    images = _with_class(paths, "", source)
    classes, _ = numbered(name for _, name in images)
    return {
        name: [image for image, is_chosen in zip(images, rows_of_split(classes, name), strict=True) if is_chosen]
        for name in SPLITS
    }


def _with_class(paths: list[str], prefix: str, source: str) -> list[tuple[str, str]]:
    relative = [path.removeprefix(prefix) for path in paths]
    outside = [path for path, below in zip(paths, relative, strict=True) if "/" not in below]
    if outside:
        raise DataError(f"{source}: the files {list_words(outside)} lie outside the class folders; move or remove them")
    return [(path, below.split("/")[0]) for path, below in zip(paths, relative, strict=True)]


def _checked_class_names(by_split: dict[Split, list[tuple[str, str]]], source: str) -> tuple[str, ...]:
    class_names = sorted_class_names(name for _, name in by_split["train"])
    if len(class_names) < 2:
        found = f" ({class_names[0]})" if class_names else ""
        raise DataError(f"{source}: has {len(class_names)} class folders{found}; at least two with images are needed")
    unknown = sorted({name for _, name in by_split["test"]} - set(class_names))
    if unknown:
        raise DataError(f"{source}: has test images but no training images of the classes {list_words(unknown)}")
    return class_names
