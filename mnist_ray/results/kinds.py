"""The kinds of results in a storage, and which of each are there."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress

from mnist_ray.results.paths import EVALUATIONS, GRIDS, PAGE, PREDICTIONS, REPORTS, RUNS
from mnist_ray.storage.manifest import MANIFEST, REQUESTS_AT_ONCE
from mnist_ray.storage.storage import Storage
from mnist_ray.text.suggestions import did_you_mean, nearest


@dataclass(frozen=True)
class Kind:
    """A kind of results.

    Attributes:
      name: in words and commands.
      folder: of all results of the kind, relative to the storage.
      mark: the object without which there is no such result, except a report: deleted first and copied last.
    """

    name: str
    folder: str
    mark: str

    def path(self, name: str, *parts: str) -> str:
        """Returns a path in the folder of a result."""
        return "/".join((self.folder, name, *parts))


RUN = Kind("run", RUNS, "config.json")
GRID = Kind("grid", GRIDS, "grid.json")
EVALUATION = Kind("evaluation", EVALUATIONS, MANIFEST)
REPORT = Kind("report", REPORTS, PAGE)
PREDICTION = Kind("prediction", PREDICTIONS, MANIFEST)
KINDS = {kind.name: kind for kind in (RUN, GRID, EVALUATION, REPORT, PREDICTION)}


def existing(storage: Storage, kind: Kind, names: Sequence[str] | None = None) -> list[str]:
    """Returns the sorted names of the results that have their mark, without half deleted and half copied ones.

    Args:
      names: where to look; None for all folders of the kind.
    """
    names = storage.list_folders(kind.folder) if names is None else sorted(names)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(compress(names, pool.map(lambda name: storage.exists(kind.path(name, kind.mark)), names)))


def not_there(storage: Storage, kind: Kind, name: str) -> str:
    """Says that a storage has no result with a name, and the nearest that it has, or how to list them."""
    near = nearest(name, [folder for folder in storage.list_folders(kind.folder) if folder != name])
    listed = f"; `mnist-ray {kind.folder}` lists what is" if kind in (RUN, GRID, EVALUATION) else ""
    # A folder may be half a result.
    hint = did_you_mean(name, existing(storage, kind, [near] if near else [])) or listed
    return f"{kind.name} {name!r}: not in {storage.uri}{hint}"


def remains(storage: Storage, kind: Kind, name: str) -> str | None:
    """Says that there is something under a name, but no mark; None if all is well."""
    # In this order: another process may write the mark, and then more.
    if next(storage.iter_files(kind.path(name)), None) is None or storage.exists(kind.path(name, kind.mark)):
        return None
    return (
        f"{kind.name} {name!r}: half deleted or half copied; give that command again, or remove the rest with "
        f"`mnist-ray rm {kind.name} {name}`"
    )
