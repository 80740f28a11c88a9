"""Objects of a storage, local and on S3."""

import os
import shutil
from pathlib import Path

import pytest

from mnist_ray.errors import StorageError
from mnist_ray.storage.storage import FileEntry, MissingError, Storage, open_storage
from tests.support.commits import COMMIT, python_output


def test_a_local_storage_loads_neither_pyarrow_nor_boto3(local: Storage) -> None:
    script = """
import sys
commit(open_storage(sys.argv[1]))
open_storage("s3://bucket/prefix")
print(*sorted({"boto3", "botocore", "numpy", "pyarrow", "pydantic", "ray", "torch"} & set(sys.modules)))
"""
    assert python_output(COMMIT + script, local.uri) == "\n"


def test_what_is_written_is_read_back(storage: Storage) -> None:
    storage.write_bytes("runs/a/config.json", b"first")
    storage.write_bytes("runs/a/config.json", b"second")
    storage.write_bytes("runs/a/empty", b"")
    assert storage.read_bytes("runs/a/config.json") == b"second"
    assert storage.read_bytes("runs/a/empty") == b""
    assert storage.exists("runs/a/config.json")
    assert not storage.exists("runs/a/config")
    assert not storage.exists("runs/a")


def test_an_object_opens_for_random_access(storage: Storage) -> None:
    storage.write_bytes("data/x.bin", bytes(range(256)))
    with storage.open_input("data/x.bin") as file:
        assert file.size() == 256
        file.seek(100)
        assert file.read(3) == b"def"
        assert file.read_at(2, 10) == b"\x0a\x0b"


def test_a_missing_object_is_named(storage: Storage) -> None:
    for read in (storage.read_bytes, storage.open_input):
        with pytest.raises(MissingError) as error:
            read("runs/a/config.json")
        assert str(error.value) == f"{storage.uri}/runs/a/config.json: no such object"
    assert not storage.exists("runs/a/config.json")


def test_an_object_is_created_only_once(storage: Storage) -> None:
    assert storage.create_bytes("runs/a/config.json", b"mine")
    assert not storage.create_bytes("runs/a/config.json", b"other")
    assert not storage.create_bytes("runs/a/config.json", b"mine")
    assert storage.read_bytes("runs/a/config.json") == b"mine"


def test_a_link_that_nfs_made_and_repeated_is_ones_own(tmp_path, monkeypatch):
    link = os.link

    def twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert open_storage(str(tmp_path)).create_bytes("a", b"mine")
    assert not open_storage(str(tmp_path)).create_bytes("a", b"mine")


@pytest.mark.parametrize("name", ["replace", "link"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_folder_that_another_writer_deletes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, when: str
) -> None:
    storage, put, left = open_storage(str(tmp_path)), getattr(os, name), [2]

    def racing(source: Path, target: Path) -> None:
        left[0] -= 1
        if when == "after":
            put(source, target)
        if left[0] >= 0:
            shutil.rmtree(target.parent)
        if when == "before":
            put(source, target)

    monkeypatch.setattr(os, name, racing)
    write = storage.write_bytes if name == "replace" else storage.create_bytes
    write("runs/a/checkpoints/epoch-0002/checkpoint.json", b"mine")
    assert storage.exists("runs/a/checkpoints/epoch-0002/checkpoint.json") == (when == "before")


def test_a_folder_is_made_again_if_another_writer_deletes_those_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, mkdir, left = open_storage(str(tmp_path)), Path.mkdir, [2]

    def racing(folder: Path, *arguments: object, **named: object) -> None:
        if folder.name == "epoch-0002" and left[0]:
            left[0] -= 1
            shutil.rmtree(folder.parent)
        mkdir(folder, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", racing)
    storage.write_bytes("runs/a/checkpoints/epoch-0002/checkpoint.json", b"mine")
    assert storage.read_bytes("runs/a/checkpoints/epoch-0002/checkpoint.json") == b"mine"


def test_listings_are_sorted_and_leave_out_hidden_names(storage: Storage) -> None:
    for path in ("runs/b/x", "runs/a/deep/y", "runs/a.txt", "runs/_tmp/z", "runs/.hidden/z", "runs/a/.z", "runs-2/x"):
        storage.write_bytes(path, path.encode())
    assert storage.list_files("runs") == [
        FileEntry("runs/_tmp/z", 11),
        FileEntry("runs/a.txt", 10),
        FileEntry("runs/a/deep/y", 13),
        FileEntry("runs/b/x", 8),
    ]
    assert [entry.path for entry in storage.list_files()][-1] == "runs/b/x"
    assert storage.list_folders("runs") == ["a", "b"]
    assert storage.list_folders() == ["runs", "runs-2"]


def test_iterating_over_files_gives_the_same_in_the_order_of_their_paths(storage: Storage) -> None:
    names = ["a/1", "a/b/2", "a-0", "a.png", "a0", "b", "B", "ü/1", "\uffee", "\U00010000", ".hidden/1", "a/.hidden"]
    for name in names:
        storage.write_bytes(name, name.encode())
    found = list(storage.iter_files())
    assert [entry.path for entry in found] == sorted(name for name in names if "hidden" not in name)
    assert found == storage.list_files()
    assert list(storage.iter_files("a")) == storage.list_files("a") == [FileEntry("a/1", 3), FileEntry("a/b/2", 5)]


def test_iterating_over_local_files_follows_links_and_leaves_out_what_is_no_file(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write_bytes("b/file", b"x")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert [entry.path for entry in storage.iter_files()] == ["a/file", "b/file"]
    (tmp_path / "b/loop").symlink_to("..")
    assert [entry.path for entry in storage.iter_files()] == ["a/file", "b/file"]


def test_a_folder_that_is_not_there_lists_as_empty(storage: Storage) -> None:
    assert storage.list_files() == []
    assert list(storage.iter_files("runs")) == []
    assert storage.list_files("runs") == []
    assert storage.list_folders("runs") == []


def test_deleting_a_folder_leaves_its_neighbours(storage: Storage) -> None:
    for path in ("runs/a/x", "runs/a/deep/y", "runs/a/.hidden", "runs/ab/x"):
        storage.write_bytes(path, b"x")
    storage.delete_folder("runs/a")
    storage.delete_folder("runs/never-there")
    assert storage.list_files() == [FileEntry("runs/ab/x", 1)]
    assert not storage.exists("runs/a/.hidden")


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "a/", ".", "a/./b", "a\nb", "a\x00b"])
def test_a_path_that_leaves_the_storage_is_refused(storage: Storage, path: str) -> None:
    calls = [
        lambda: storage.exists(path),
        lambda: storage.read_bytes(path),
        lambda: storage.open_input(path),
        lambda: storage.list_files(path),
        lambda: storage.list_folders(path),
        lambda: storage.write_bytes(path, b"x"),
        lambda: storage.create_bytes(path, b"x"),
        lambda: storage.delete_folder(path),
        lambda: storage.uri_of(path),
        lambda: storage.pending_folder(path),
        lambda: storage.read_manifest(path),
    ]
    for call in calls:
        with pytest.raises(StorageError, match=r"must lie inside the storage"):
            call()


@pytest.mark.parametrize("name", ["", "../x", "a/b/c", "a/.b", ".hidden", "_manifest.json", "a b"])
def test_a_file_name_that_is_no_plain_name_is_refused(local: Storage, name: str) -> None:
    with pytest.raises(ValueError, match="use letters, digits"):
        local.pending_folder("evaluations/e1").write(name, b"x")


def test_the_whole_storage_can_not_be_deleted(local: Storage) -> None:
    local.write_bytes("runs/a", b"x")
    with pytest.raises(StorageError):
        local.delete_folder("")
    assert local.read_bytes("runs/a") == b"x"


def test_a_check_leaves_nothing_behind(storage: Storage) -> None:
    storage.check()
    assert storage.list_files() == []
    assert storage.list_files(".staging") == []
