"""A storage with a result of each kind, local and on S3."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from mnist_ray.storage.storage import Storage, open_storage
from tests.storage.conftest import local, uri  # noqa: F401  (fixtures)
from tests.support.stored_results import make_results, put


@dataclass(frozen=True)
class Results:
    """A local storage of make_results, from which tests make their own."""

    folder: str
    evaluation: str
    runs: list[str]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = str(tmp_path_factory.mktemp("made") / "results")
    evaluation = make_results(folder)
    return Results(folder, evaluation, open_storage(folder).list_folders("runs"))


@pytest.fixture
def storage(results: Results, uri: str) -> Storage:  # noqa: F811  (the fixture)
    return put(results.folder, uri)


@pytest.fixture
def folder(results: Results, tmp_path: Path) -> Storage:
    """A local one."""
    return put(results.folder, str(tmp_path / "folder"))
