"""The storages of the tests: local, and on S3."""

from pathlib import Path

import pytest

from mnist_ray.storage.storage import Storage, open_storage


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "results") if request.param == "local" else request.getfixturevalue("s3_uri")


@pytest.fixture
def storage(uri: str) -> Storage:
    return open_storage(uri)


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "results"))
