"""The files of the user's own data: what of them tells whether they have changed, without reading an image."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mnist_ray.data.sources import MAX_NAMES_SAID, file_at, iter_entries, list_words
from mnist_ray.storage.storage import open_storage
from mnist_ray.storage.uri import check_uri
from mnist_ray.text.escape import printable

# More would make a long manifest; beyond that, only counts tell what has changed.
_FILES_LISTED = 200


def source_files(dataset: str) -> dict[str, Any] | None:
    """Returns facts about the files of the user's own data, as JSON values.

    Args:
      dataset: see `load_examples`.

    Returns:
      num_files, num_bytes, sha256 of all paths, sizes and stamps (see FileEntry), and, of a few files, `files`: each
      file's path, size and stamp. None for a data set by name.

    Raises:
      DataError, StorageError: the files can't be listed.
    """
    kind, colon, place = dataset.partition(":")
    if not colon:
        return None
    uri = check_uri(place, kind)
    if (single := file_at(uri)) is not None:
        folder, name = single
        entries = [folder.entry(name)]
    else:
        entries = sorted(iter_entries(open_storage(uri), f"dataset={dataset}"), key=lambda entry: entry.path)
    files = [[printable(entry.path), entry.size, entry.stamp] for entry in entries]
    return {
        "num_files": len(files),
        "num_bytes": sum(entry.size for entry in entries),
        "sha256": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        **({"files": files} if len(files) <= _FILES_LISTED else {}),
    }


def change_of(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns in words how the files differ, such as `changed: 7/3.png; new: 7/4.png`."""
    if "files" in then and "files" in now:
        before, after = ({path: facts for path, *facts in files} for files in (then["files"], now["files"]))
        kinds = {
            "changed": [path for path in before if path in after and before[path] != after[path]],
            "new": [path for path in after if path not in before],
            "gone": [path for path in before if path not in after],
        }
        return "; ".join(f"{kind}: {list_words(paths, MAX_NAMES_SAID)}" for kind, paths in kinds.items() if paths)
    counts = [f"{files['num_files']:,} files of {files['num_bytes']:,} bytes" for files in (then, now)]
    return f"{counts[0]} then, {counts[1]} now"
