"""The user's own unlabelled images: one image, a folder, an IDX file or Parquet, local or on S3."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from mnist_ray.data.idx_spans import GZIP_MAGIC, idx_spans
from mnist_ray.data.image_spans import Span, file_spans, first_bytes, parquet_spans
from mnist_ray.data.parquet import is_kept_apart, is_parquet_name, list_parquet_files
from mnist_ray.data.parquet_file import image_layout, open_parquet
from mnist_ray.data.sources import LeftOutFiles, file_at, iter_entries
from mnist_ray.errors import DataError
from mnist_ray.storage.storage import Storage, check_uri, open_storage

ImagesKind = Literal["image", "folder", "parquet", "idx"]


@dataclass(frozen=True)
class Images:
    """The user's images, located but not yet read.

    Attributes:
      uri: the place given by the user, in its normal form.
      paths: the files in it; empty for a folder, which may have any number.
    """

    uri: str
    kind: ImagesKind
    storage: Storage
    paths: tuple[str, ...]

    def spans(self, shard_size: int) -> Iterator[Span]:
        """Yields the images in spans that don't depend on the workers; a folder's files are sorted by path.

        Args:
          shard_size: images per shard; a span's last shard may have fewer.

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
        return file_spans(self.storage, [self.storage.entry(path)], shard_size)

    def left_out(self) -> LeftOutFiles:
        """Lists a local folder of images and returns its entries that aren't regular files.

        Raises:
          StorageError: the folder can't be listed.
        """
        left_out = LeftOutFiles()
        # Every object on S3 is readable.
        if self.kind == "folder" and self.storage.is_local:
            deque(iter_entries(self.storage, _source(self.uri), left_out=left_out), maxlen=0)
        return left_out


def find_images(place: str) -> Images:
    """Finds the images at a place; judges a file by its first bytes.

    A folder is Parquet if all its files are named *.parquet, except names that begin with '_'. Hidden files and the
    junk of file managers are left out; any other file of a folder counts as an image.

    Args:
      place: a local path, file:// or s3://, of a file or folder; a prefix folder:, parquet: or idx: gives the kind.

    Raises:
      ConfigError: the URI breaks a rule of storage.check_uri.
      DataError: the place is missing or empty, or mixes Parquet and other files.
      StorageError: the storage can't be read.
    """
    kind, uri = split_kind(place)
    source = _source(uri)
    file = file_at(uri)
    if kind == "parquet":
        storage, listing = list_parquet_files(uri, source)
        return _checked_parquet(Images(uri, "parquet", storage, tuple(listing.paths)))
    if file and kind != "folder":
        storage, name = file
        judged: ImagesKind = "idx" if kind == "idx" else _kind_of_file(storage, name)
        images = Images(uri, judged, storage, (name,))
        return _checked_parquet(images) if judged == "parquet" else images
    if kind == "idx":
        raise DataError(f"{source}: there is no such IDX file; check the path")
    storage = open_storage(uri)
    if storage.is_local and not Path(uri).exists():
        raise DataError(f"{source}: there is no such file or folder; check the path")
    left_out = LeftOutFiles()
    if next(iter_entries(storage, source, left_out=left_out), None) is None:
        if left_out.counts:
            raise DataError(f"{source}: has no readable files; left out: {', '.join(left_out.clauses())}")
        raise DataError(f"{source}: there are no files in {uri}; check the path")
    if kind != "folder" and (paths := _parquet_paths(storage, source)):
        return _checked_parquet(Images(uri, "parquet", storage, tuple(paths)))
    return Images(uri, "folder", storage, ())


def split_kind(place: str) -> tuple[ImagesKind | None, str]:
    """Returns the kind in a place's prefix, None without a prefix, and the place's URI in its normal form.

    Raises:
      ConfigError: the URI breaks a rule of storage.check_uri.
    """
    prefix, colon, rest = place.partition(":")
    if colon and prefix in get_args(ImagesKind) and prefix != "image":
        return cast(ImagesKind, prefix), check_uri(rest, prefix)
    return None, check_uri(place, "images")


def _source(uri: str) -> str:
    return f"images={uri}"


def _kind_of_file(storage: Storage, name: str) -> ImagesKind:
    first = first_bytes(storage, name)
    if first == b"PAR1":
        return "parquet"
    # The magic number of an IDX file of bytes; no image is packed with gzip.
    return "idx" if first.startswith((b"\0\0\x08", GZIP_MAGIC)) else "image"


def _parquet_paths(storage: Storage, source: str) -> list[str]:
    """Returns the files of a folder of Parquet files, an empty list for another folder."""
    parquet: list[str] = []
    for path in (entry.path for entry in iter_entries(storage, source) if not is_kept_apart(entry.path)):
        if not is_parquet_name(path):
            if not parquet:
                return []
            raise DataError(
                f"{source}: holds Parquet files ({parquet[0]}) and others ({path}); say which with parquet:URI or "
                "folder:URI"
            )
        parquet.append(path)
    return parquet


def _checked_parquet(images: Images) -> Images:
    with open_parquet(images.storage, images.paths[0], _source(images.uri)) as file:
        image_layout(file, f"{_source(images.uri)}: {images.paths[0]}")
    if next(images.spans(1), None) is None:
        raise DataError(f"{_source(images.uri)}: has no rows; at least one image is needed")
    return images
