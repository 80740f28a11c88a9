"""The user's own images without labels: one image, a folder, an IDX file or Parquet, local or on S3."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from mnist_ray.data.image_spans import GZIP_MAGIC, Span, file_size, file_spans, first_bytes, idx_spans, parquet_spans
from mnist_ray.data.parquet import find_parquet_files, image_layout, open_parquet
from mnist_ray.data.sources import LeftOutFiles, iter_entries
from mnist_ray.errors import DataError
from mnist_ray.storage.storage import FileEntry, Storage, check_uri, open_storage

ImagesKind = Literal["image", "folder", "parquet", "idx"]


@dataclass(frozen=True)
class Images:
    """The user's images, found and not yet read.

    Attributes:
      uri: the place that was named, in its normal form.
      kind: one image, a folder of image files, Parquet, or an IDX file.
      storage: where they are.
      paths: the files in it; of a folder none, as it may have any number.
    """

    uri: str
    kind: ImagesKind
    storage: Storage
    paths: tuple[str, ...]

    def spans(self, shard_size: int) -> Iterator[Span]:
        """Yields the images in spans that don't depend on who reads them; folders are in the order of their paths.

        Args:
          shard_size: images in one shard; the last of a span may have fewer.

        Raises:
          DataError: a Parquet or IDX file is damaged.
          StorageError: the storage can't be read.
        """
        source = _source(self.uri)
        if self.kind == "folder":
            return file_spans(self.storage, iter_entries(self.storage, source), shard_size)
        if self.kind == "parquet":
            return parquet_spans(self.storage, self.paths, source, shard_size)
        (path,) = self.paths
        if self.kind == "idx":
            return idx_spans(self.storage, path, source, shard_size)
        return file_spans(self.storage, [FileEntry(path, file_size(self.storage, path))], shard_size)

    def left_out(self) -> LeftOutFiles:
        """Returns what a local folder of images holds besides regular files; a walk over its names.

        Raises:
          StorageError: it can't be listed.
        """
        left_out = LeftOutFiles()
        # All objects of S3 can be read.
        if self.kind == "folder" and self.storage.is_local:
            deque(iter_entries(self.storage, _source(self.uri), left_out=left_out), maxlen=0)
        return left_out


def find_images(place: str) -> Images:
    """Finds the images that a person named; what a file holds is judged by its first bytes.

    A folder is one of Parquet if all its files are named *.parquet, but for those that begin with '_'. Hidden files
    and the junk of file managers are left out; any other file of a folder counts as an image.

    Args:
      place: a local path, file:// or s3://, of a file or folder; a prefix folder:, parquet: or idx: says what it is.

    Raises:
      ConfigError: the URI breaks a rule of storage.check_uri.
      DataError: nothing there, or Parquet files among others.
      StorageError: the storage can't be read.
    """
    kind, uri = split_kind(place)
    source = _source(uri)
    found = _file_at(uri)
    if kind == "parquet":
        storage, paths = find_parquet_files(uri, source)
        return _checked_parquet(Images(uri, "parquet", storage, tuple(paths)))
    if found and kind != "folder":
        storage, name = found
        judged: ImagesKind = "idx" if kind == "idx" else _kind_of_file(storage, name)
        images = Images(uri, judged, storage, (name,))
        return _checked_parquet(images) if judged == "parquet" else images
    if kind == "idx":
        raise DataError(f"{source}: there is no such IDX file; check the path")
    storage = open_storage(uri)
    if storage.is_local and not Path(uri).exists():
        raise DataError(f"{source}: there is no such file or folder; check the path")
    left_out = LeftOutFiles()
    first = next(iter_entries(storage, source, left_out=left_out), None)
    if first is None and left_out.counts:
        raise DataError(f"{source}: has no files that can be read; left out are {', '.join(left_out.clauses())}")
    if first is None:
        raise DataError(f"{source}: there are no files in {uri}; check the path")
    paths = [] if kind == "folder" else _parquet_paths(storage, source)
    if paths:
        return _checked_parquet(Images(uri, "parquet", storage, tuple(paths)))
    return Images(uri, "folder", storage, ())


def split_kind(place: str) -> tuple[ImagesKind | None, str]:
    """Returns what the prefix of a place says that it is, None without one, and the place's URI in its normal form.

    Raises:
      ConfigError: the URI breaks a rule of storage.check_uri.
    """
    prefix, colon, rest = place.partition(":")
    if colon and prefix in get_args(ImagesKind) and prefix != "image":
        return cast(ImagesKind, prefix), check_uri(rest, prefix)
    return None, check_uri(place, "images")


def _source(uri: str) -> str:
    return f"images={uri}"


def _file_at(uri: str) -> tuple[Storage, str] | None:
    """Returns the folder and the name of the file at a URI, None if there is no file."""
    parent, _, name = uri.rpartition("/")
    if parent == "s3:/" or not name:
        return None
    folder = open_storage(parent or "/")
    return (folder, name) if folder.exists(name) else None


def _kind_of_file(storage: Storage, name: str) -> ImagesKind:
    first = first_bytes(storage, name)
    if first == b"PAR1":
        return "parquet"
    # The magic number of an IDX file of bytes; no image is packed with gzip.
    return "idx" if first.startswith((b"\0\0\x08", GZIP_MAGIC)) else "image"


def _parquet_paths(storage: Storage, source: str) -> list[str]:
    """Returns the files of a folder of Parquet files, none of another folder."""
    paths = (entry.path for entry in iter_entries(storage, source))
    # Names that begin with '_' are what writers keep for themselves.
    content = (path for path in paths if not any(part.startswith("_") for part in path.split("/")))
    found: list[str] = []
    for path in content:
        if not path.lower().endswith(".parquet"):
            if not found:
                return []
            raise DataError(
                f"{source}: holds Parquet files ({found[0]}) and others ({path}); say which with parquet:URI or "
                "folder:URI"
            )
        found.append(path)
    return found


def _checked_parquet(images: Images) -> Images:
    with open_parquet(images.storage, images.paths[0], _source(images.uri)) as file:
        image_layout(file, f"{_source(images.uri)}: {images.paths[0]}")
    if next(images.spans(1), None) is None:
        raise DataError(f"{_source(images.uri)}: has no rows; at least one image is needed")
    return images
