"""folder:URI: one folder of images for each class."""

from collections.abc import Sequence
from dataclasses import dataclass

from mnist_ray.data.decoded_images import DecodedImages
from mnist_ray.data.decoding import MAX_IMAGE_BYTES
from mnist_ray.data.examples import ExampleStream, Found, Split, labels_of, numbered, rows_of_split, sorted_class_names
from mnist_ray.data.image_shape import ImageOptions
from mnist_ray.data.image_survey import form_of_encoded
from mnist_ray.data.sources import list_files, list_words, read_files
from mnist_ray.data.splits import PARTS, Part, check_parts, common_folders, one_part, splits_note, words_in
from mnist_ray.errors import DataError
from mnist_ray.storage.storage import open_storage
from mnist_ray.text.sizes import count_text


@dataclass(frozen=True)
class _Image:
    path: str
    class_name: str
    part: Part | None


def stream_image_folder(uri: str, split: Split, options: ImageOptions) -> ExampleStream:
    """Finds images in one folder per class, at any depth below it.

    Folders or file names may name the splits (see splits.py): train/CLASS/..., CLASS/train/FILE or CLASS/train-1.png,
    and the same with test and validation. Without test images, the fifth, tenth, ... training image of each class by
    name is a test image. A validation set comes last in the training split. Classes are the sorted folder names, by
    value if all are whole numbers. DecodedImages converts the images to the form that form_of_encoded chooses for all
    splits. Hidden files and the junk of file managers are left out.

    Raises:
      DataError: a missing place, a file of more than 256 MiB, a file outside the class folders, ambiguous split names,
        fewer than two classes, a class without training images, images that need a size; on reading, a file that isn't
        an image.
      StorageError: the storage can't be read.
    """
    source = f"dataset=folder:{uri}"
    storage = open_storage(uri)
    listing = list_files(storage, source, max_bytes=MAX_IMAGE_BYTES)
    images = _images(listing.paths, source)
    of_part = check_parts(listing.paths, [image.part for image in images], source)
    by_split, num_validation = _by_split(images)
    class_names = _checked_class_names(images, by_split, source)
    chosen = by_split[split]
    labels = labels_of(*numbered(image.class_name for image in chosen), class_names)
    paths = [image.path for image in chosen]
    whole = [image.path for part in by_split.values() for image in part]
    form = form_of_encoded(options, lambda: read_files(storage, whole), source)

    def read(wide_bits: int | None = None) -> DecodedImages:
        return DecodedImages(read_files(storage, paths), form, source, lambda: read_files(storage, whole), wide_bits)

    return ExampleStream(
        labels,
        class_names,
        form.shape,
        source,
        read,
        num_validation if split == "train" else 0,
        Found(splits_note(of_part), len(by_split["test"]), listing.left_out),
    )


def _images(paths: Sequence[str], source: str) -> list[_Image]:
    """Returns the class and split of each file."""
    shared = common_folders(paths)
    if any(words_in(folder) for path in paths for folder in path.split("/")[shared:-1]):
        return _with_split_folders(paths, shared, source)
    # A folder that holds all images is a class, unless it has a split's name.
    prefix = max((depth + 1 for depth, name in enumerate(paths[0].split("/")[:shared]) if words_in(name)), default=0)
    parts = [one_part([path.split("/")[-1]], path, source) for path in paths]
    if not any(parts):
        parts = [one_part(path.split("/")[:prefix], path, source) for path in paths]
    _check_inside([path for path in paths if path.count("/") <= prefix], source)
    return [_Image(path, path.split("/")[prefix], part) for path, part in zip(paths, parts, strict=True)]


def _with_split_folders(paths: Sequence[str], shared: int, source: str) -> list[_Image]:
    below = [path.split("/")[shared:] for path in paths]
    if all(words_in(names[0]) for names in below if len(names) > 1):
        # In train/CLASS/..., the class may have any name; other folders must agree with the outermost.
        parts = [
            one_part([names[0], *names[2:-1]] if len(names) > 1 else names, path, source)
            for path, names in zip(paths, below, strict=True)
        ]
        check_parts(paths, parts, source)
        _check_inside([path for path, names in zip(paths, below, strict=True) if len(names) < 3], source)
        return [_Image(path, names[1], part) for path, names, part in zip(paths, below, parts, strict=True)]
    parts = [one_part(names[:-1], path, source) for path, names in zip(paths, below, strict=True)]
    check_parts(paths, parts, source)
    for path, names in zip(paths, below, strict=True):
        # Only CLASS/train/FILE; with folders below train/, the class is ambiguous.
        if len(names) != 3 or words_in(names[0]):
            raise DataError(
                f"{source}: {path}: the folder of its class is unclear; arrange all files as train/CLASS/FILE and "
                "test/CLASS/FILE"
            )
    return [_Image(path, names[0], part) for path, names, part in zip(paths, below, parts, strict=True)]


def _check_inside(outside: list[str], source: str) -> None:
    if outside:
        raise DataError(f"{source}: the files {list_words(outside)} lie outside the class folders; move or remove them")


def _by_split(images: Sequence[_Image]) -> tuple[dict[Split, list[_Image]], int]:
    """Returns the images of each split, and how many of the last training images are for validation."""
    train, validation, test = ([image for image in images if image.part == part] for part in PARTS)
    train = train or list(images)
    if not test:
        is_test = rows_of_split(numbered(image.class_name for image in train)[0], "test")
        test = [image for image, chosen in zip(train, is_test, strict=True) if chosen]
        train = [image for image, chosen in zip(train, is_test, strict=True) if not chosen]
    return {"train": train + validation, "test": test}, len(validation)


def _checked_class_names(images: Sequence[_Image], by_split: dict[Split, list[_Image]], source: str) -> tuple[str, ...]:
    class_names = sorted_class_names(image.class_name for image in by_split["train"] if image.part != "validation")
    if len(class_names) < 2:
        only = f" ({class_names[0]})" if class_names else ""
        folders = count_text(len(class_names), "class folder")
        raise DataError(f"{source}: has {folders}{only}; at least two with images are needed")
    for part in ("test", "validation"):
        unknown = sorted({image.class_name for image in images if image.part == part} - set(class_names))
        if unknown:
            raise DataError(f"{source}: has {part} images but no training images of the classes {list_words(unknown)}")
    tested = {image.class_name for image in by_split["test"]}
    doubtful = [name for name in class_names if words_in(name) and name not in tested]
    if doubtful:
        raise DataError(
            f"{source}: the class folders {list_words(doubtful)} have split names and no test images; "
            "rename them, or move their contents"
        )
    return class_names
