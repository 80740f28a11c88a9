"""What a storage in a local folder does besides: disks, links, and files that others made."""

import hashlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mnist_ray.errors import ConflictError, StorageError
from mnist_ray.storage.storage import FileEntry, Storage, StoredFile, open_storage, storage_errors
from tests.support.commits import DAY_S, commit, tree
from tests.support.small_disk import small_disk


def test_a_local_object_is_an_ordinary_file(local: Storage) -> None:
    local.write_bytes("runs/a/x", b"content")
    assert Path(local.uri_of("runs/a/x")).read_bytes() == b"content"
    assert tree(local) == ["runs/a/x"]
    assert Path(local.uri, "runs/a/x").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_linked_class_folders_are_listed(local: Storage, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").write_bytes(b"png")
    local.write_bytes("images/zero/1.png", b"png!")
    Path(local.uri, "images/one").symlink_to(tmp_path / "elsewhere")
    assert local.list_files("images") == [FileEntry("images/one/1.png", 3), FileEntry("images/zero/1.png", 4)]
    assert local.list_folders("images") == ["one", "zero"]


def test_a_local_folder_without_a_manifest_is_a_conflict(local: Storage) -> None:
    local.write_bytes("evaluations/e1/somebody.txt", b"else's")
    with pytest.raises(ConflictError, match=r"evaluations/e1: exists with other content"):
        commit(local)
    assert tree(local) == ["evaluations/e1/somebody.txt"]


def test_a_part_that_is_not_on_this_machine_is_named(local: Storage) -> None:
    pending = local.pending_folder("evaluations/e1")
    elsewhere = StoredFile("part.parquet", "part.parquet", 3, hashlib.sha256(b"abc").hexdigest())
    with pytest.raises(StorageError, match=r"part\.parquet: written by a worker, but missing here; several machines"):
        pending.commit([elsewhere], {})
    assert local.read_manifest("evaluations/e1") is None


def test_leftovers_age_by_their_newest_file(local: Storage) -> None:
    killed, working = local.pending_folder("evaluations/e1"), local.pending_folder("evaluations/e2")
    for pending in (killed, working):
        pending.write("metrics.parquet", b"x")
        folder = Path(local.uri, ".staging", pending.token)
        old = folder.stat().st_mtime - 2 * DAY_S
        os.utime(folder, (old, old))
        if pending is killed:
            os.utime(folder / "metrics.parquet", (old, old))
    local.pending_folder("evaluations/e3")
    assert tree(local) == [f".staging/{working.token}/metrics.parquet"]


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_halfway_leaves_the_old_object(local: Storage) -> None:
    local.write_bytes("runs/a", b"old")
    with files_limited_to(1000):
        with pytest.raises(StorageError) as error:
            local.write_bytes("runs/a", b"new" * 1000)
        with pytest.raises(StorageError):
            local.create_bytes("runs/b", b"new" * 1000)
    assert str(error.value) == f"storage='{local.uri}/runs/a': can't be written: File too large"
    assert local.read_bytes("runs/a") == b"old"
    assert tree(local) == ["runs/a"]


@pytest.mark.fault
def test_a_full_disk_is_named_and_leaves_the_old_object(tmp_path: Path) -> None:
    with small_disk(tmp_path, "128k") as folder:
        storage = open_storage(str(folder))
        storage.write_bytes("runs/a", b"old")
        for write, place in (
            (storage.write_bytes, "runs/a"),
            (lambda _, data: commit(storage, {"a.parquet": data}), ".staging/"),
        ):
            with pytest.raises(StorageError) as error:
                write("runs/a", bytes(1 << 20))
            assert str(error.value).startswith(f"storage='{folder}/{place}")
            assert str(error.value).endswith(
                "can't be written: the disk is full; free some space or choose another storage"
            )
        assert storage.read_bytes("runs/a") == b"old"
        assert storage.list_files() == [FileEntry("runs/a", 3)]
        assert storage.list_files(".staging") == []


def test_a_file_in_the_place_of_the_storage_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_bytes(b"a file")
    for uri in (tmp_path / "results", tmp_path / "results" / "deeper"):
        with pytest.raises(StorageError) as error:
            open_storage(str(uri)).check()
        assert str(error.value).startswith(f"storage='{uri}")
        assert str(error.value).endswith("a file stands where a folder is needed; choose another storage")
    assert (tmp_path / "results").read_bytes() == b"a file"


def test_a_place_where_no_folder_can_be_made_is_named() -> None:
    with pytest.raises(StorageError, match=r"a folder is missing and can't be made; choose another storage$"):
        open_storage("/proc/mnist-ray").check()


def test_a_failed_read_of_an_open_object_is_a_storage_error(local: Storage) -> None:
    local.write_bytes("x", b"x")
    with pytest.raises(StorageError, match=r"can't be read"), storage_errors(local.uri_of("x")):
        os.lseek(10**6, 0, os.SEEK_SET)


def test_a_bug_is_not_dressed_up_as_a_storage_error() -> None:
    with pytest.raises(ZeroDivisionError), storage_errors("/x"):
        print(1 / 0)


def test_a_link_to_a_folder_above_is_not_followed_round_and_round(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/image").write_bytes(b"1")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/beside").symlink_to(tmp_path / "a/b")
    found = open_storage(str(tmp_path)).iter_files("a")
    assert [entry.path for entry in found] == ["a/b/image", "a/beside/image"]


@pytest.fixture
def leading_out(tmp_path: Path) -> tuple[Storage, Path]:
    """A storage in which each folder is a link to somebody's documents."""
    documents = tmp_path / "documents"
    (documents / "letters").mkdir(parents=True)
    (documents / "letters/one.txt").write_text("dear")
    os.utime(documents / "letters/one.txt", (0, 0))
    os.utime(documents / "letters", (0, 0))
    storage = open_storage(str(tmp_path / "storage"))
    Path(storage.uri).mkdir()
    for name in (".staging", "runs", "evaluations"):
        Path(storage.uri, name).symlink_to(documents)
    return storage, documents


def test_nothing_is_written_or_deleted_through_a_link_out_of_the_storage(leading_out: tuple[Storage, Path]) -> None:
    storage, documents = leading_out
    pending = storage.pending_folder
    for attempt in (
        storage.remove_leftovers,
        storage.check,
        lambda: pending("evaluations/e"),
        lambda: storage.delete_folder("runs/letters"),
        lambda: storage.write_bytes("runs/letters/one.txt", b""),
        lambda: storage.create_bytes("runs/letters/two.txt", b""),
    ):
        with pytest.raises(StorageError, match="a link on the way leads out of the storage; remove the link"):
            attempt()
    Path(storage.uri, ".staging").unlink()
    with pytest.raises(StorageError, match="leads out of the storage"):
        storage.write_bytes("runs/letters/one.txt", b"")
    with pytest.raises(StorageError, match="leads out of the storage"):
        pending("evaluations/e").commit([], {})
    assert [path.name for path in sorted(documents.rglob("*"))] == ["letters", "one.txt"]
    assert (documents / "letters/one.txt").read_text() == "dear"


def test_of_a_link_in_the_storage_the_link_is_deleted(leading_out: tuple[Storage, Path]) -> None:
    storage, documents = leading_out
    Path(storage.uri, ".staging").unlink()
    storage.delete_folder("runs")
    assert not os.path.lexists(Path(storage.uri, "runs"))
    assert (documents / "letters/one.txt").read_text() == "dear"


def test_a_link_within_the_storage_and_a_storage_that_is_a_link_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "real/elsewhere").mkdir(parents=True)
    (tmp_path / "real/runs").symlink_to("elsewhere")
    (tmp_path / "link").symlink_to("real")
    open_storage(str(tmp_path / "link")).write_bytes("runs/a/config.json", b"{}")
    assert (tmp_path / "real/elsewhere/a/config.json").read_bytes() == b"{}"
