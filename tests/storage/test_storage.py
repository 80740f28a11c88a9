import hashlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mnist_ray.errors import ConfigError, ConflictError, DataError, StorageError
from mnist_ray.storage.storage import (
    FileEntry,
    MissingError,
    Storage,
    StoredFile,
    check_uri,
    open_storage,
    storage_errors,
)
from tests.support.small_disk import on_small_disk

REPOSITORY = Path(__file__).parents[2]
FILES = {"metrics.parquet": b"metrics of the run", "predictions-00000.parquet": b"\x00\x01\x02" * 1000}
DAY_S = 24 * 3600

COMMIT = """
from mnist_ray.errors import ConflictError
from mnist_ray.storage.storage import open_storage

def commit(storage, files={"a.parquet": b"aaaa", "b.parquet": b"bb"}):
    pending = storage.pending_folder("evaluations/e1")
    stored = [pending.write(name, data) for name, data in files.items()]
    return pending.commit(stored, {"split": "test", "volatile": {"token": pending.token}})
"""

# Commits in one storage after the other; in the n-th one the process ends by SIGKILL just before the n-th of the
# watched calls into the operating system.
KILLED_COMMITS = """
import os, signal, sys

def kill_at(n, events):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        # Ending the process is an audited call itself.
        if event in events:
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

uri, events = sys.argv[1], set(sys.argv[2].split(","))
if uri.startswith("s3://"):
    import boto3
for n in range(1, 1000):
    child = os.fork()
    if child == 0:
        kill_at(n, events)
        commit(open_storage(f"{uri}/{n}"))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        print(n - 1, status)
        break
"""

RACER = """
import sys

storage = open_storage(sys.argv[1])
pending = storage.pending_folder("evaluations/e1")
stored = [pending.write("a.parquet", sys.argv[2].encode())]
print("ready", flush=True)
sys.stdin.readline()
try:
    print("commit", pending.commit(stored, {"split": "test", "volatile": {"token": pending.token}}))
except ConflictError:
    print("commit", "conflict")
print("create", storage.create_bytes("runs/r1/config.json", pending.token.encode()))
"""


def run_python(script: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def python_output(script: str, *arguments: str) -> str:
    process = run_python(script, *arguments)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return output


def race(uri: str, contents: list[str]) -> dict[str, list[str]]:
    """What each of the processes got from its commit and its create, sorted."""
    racers = [run_python(COMMIT + RACER, uri, content) for content in contents]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * len(racers)
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    lines = [line.split() for racer in racers for line in racer.communicate(timeout=120)[0].splitlines()]
    assert [racer.returncode for racer in racers] == [0] * len(racers)
    return {what: sorted(line[1] for line in lines if line[0] == what) for what in ("commit", "create")}


def commit(storage: Storage, files: dict[str, bytes] = FILES, path: str = "evaluations/e1", **manifest: object) -> bool:
    pending = storage.pending_folder(path)
    stored = [pending.write(name, data) for name, data in files.items()]
    return pending.commit(stored, {"split": "test", **manifest})


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "results") if request.param == "local" else request.getfixturevalue("s3_uri")


@pytest.fixture
def storage(uri: str) -> Storage:
    return open_storage(uri)


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "results"))


def tree(storage: Storage) -> list[str]:
    """All files of a local storage, the hidden ones too."""
    return sorted(file.relative_to(storage.uri).as_posix() for file in Path(storage.uri).rglob("*") if file.is_file())


# URIs

UNSUPPORTED = "is not supported; use a local path, file:///folder or s3://bucket/prefix"
CREDENTIALS = "no credentials in a URI; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
QUERY = "no query or fragment; endpoint and region come from AWS_ENDPOINT_URL and AWS_REGION"


@pytest.mark.parametrize(
    ("uri", "normal"),
    [
        ("/data/results/", "/data/results"),
        ("/data/a b#1?.d", "/data/a b#1?.d"),
        ("/data/x/../results", "/data/results"),
        ("file:///data/results", "/data/results"),
        ("file://localhost/data/my%20results/", "/data/my results"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://bucket/a b/@x", "s3://bucket/a b/@x"),
    ],
)
def test_a_uri_has_one_normal_form(uri: str, normal: str) -> None:
    assert check_uri(uri) == normal
    assert check_uri(normal) == normal
    assert open_storage(uri) == Storage(normal)


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert check_uri("results") == f"{tmp_path}/results"
    assert check_uri("~/results") == "/home/somebody/results"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "storage='': give a folder, or s3://bucket/prefix"),
        ("  ", "storage='  ': give a folder, or s3://bucket/prefix"),
        ("gs://bucket/x", f"storage='gs://bucket/x': gs:// {UNSUPPORTED}"),
        ("https://me:hush@host/x", f"storage='https://***@host/x': https:// {UNSUPPORTED}"),
        ("s3://AKIA:hush@bucket/x", f"storage='s3://***@bucket/x': {CREDENTIALS}"),
        ("s3://AKIA:hu/sh@bucket/x", f"storage='s3://***@bucket/x': {CREDENTIALS}"),
        ("s3://bucket/x?access_key=AKIA&secret_key=hush", f"storage='s3://bucket/x?***': {CREDENTIALS}"),
        ("s3://bucket/x?region=eu-west-1", f"storage='s3://bucket/x?***': {QUERY}"),
        ("s3://bucket/x#y", f"storage='s3://bucket/x#***': {QUERY}"),
        (
            "s3://",
            "storage='s3://': needs a bucket name of letters, digits, '.', '_' or '-': s3://bucket/prefix",
        ),
        (
            "s3:///x",
            "storage='s3:///x': needs a bucket name of letters, digits, '.', '_' or '-': s3://bucket/prefix",
        ),
        ("s3:/bucket/x", "storage='s3:/bucket/x': write s3:// with two slashes before the bucket"),
        ("s3://bucket/a/../b", "storage='s3://bucket/a/../b': no empty, '.' or '..' parts in the prefix"),
        ("s3://bucket//b", "storage='s3://bucket//b': no empty, '.' or '..' parts in the prefix"),
        ("file://host/x", "storage='file://host/x': a file URI starts with file:/// and an absolute path"),
        ("/data/a\nb", "storage='/data/a\\nb': remove the control characters"),
        ("s3://bucket/a\x00b", "storage='s3://bucket/a\\x00b': remove the control characters"),
        ("file:///a%00b", "storage='/a\\x00b': remove the control characters"),
    ],
)
def test_a_uri_that_breaks_a_rule_is_refused_in_one_line_without_secrets(uri: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_uri(uri)
    assert str(error.value) == message
    with pytest.raises(ConfigError):
        open_storage(uri)


def test_the_refusal_names_the_setting_that_holds_the_uri() -> None:
    with pytest.raises(ConfigError, match=r"^dataset='gs://x': "):
        check_uri("gs://x", "dataset")


def test_a_local_storage_loads_neither_pyarrow_nor_boto3(local: Storage) -> None:
    script = """
import sys
commit(open_storage(sys.argv[1]))
open_storage("s3://bucket/prefix")
print(*sorted({"boto3", "botocore", "numpy", "pyarrow", "pydantic", "ray", "torch"} & set(sys.modules)))
"""
    assert python_output(COMMIT + script, local.uri) == "\n"


# Objects, local and on S3


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


def test_listings_are_sorted_and_leave_out_hidden_names(storage: Storage) -> None:
    for path in ("runs/b/x", "runs/a/deep/y", "runs/a.txt", "runs/_tmp/z", "runs/.hidden/z", "runs/a/.z", "runs-2/x"):
        storage.write_bytes(path, path.encode())
    assert storage.list_files("runs") == [
        FileEntry("runs/_tmp/z", 11),
        FileEntry("runs/a.txt", 10),
        FileEntry("runs/a/deep/y", 13),
        FileEntry("runs/b/x", 8),
    ]
    assert storage.list_files("runs", recursive=False) == [FileEntry("runs/a.txt", 10)]
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


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "_manifest.json", "a b"])
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


# Committed folders, local and on S3


def test_a_folder_is_committed_whole(storage: Storage) -> None:
    pending = storage.pending_folder("evaluations/e1")
    stored = [pending.write(name, data) for name, data in FILES.items()]
    assert storage.read_manifest("evaluations/e1") is None
    assert storage.list_files() == []
    assert pending.commit(stored, {"split": "test", "accuracy": 0.1})

    assert storage.list_folders("evaluations") == ["e1"]
    names = [entry.path.removeprefix("evaluations/e1/") for entry in storage.list_files("evaluations")]
    assert names == sorted([*(file.stored_name for file in stored), "_manifest.json", "_SUCCESS"])
    assert storage.list_files(".staging") == []
    manifest = storage.read_manifest("evaluations/e1")
    assert manifest is not None
    assert manifest["split"] == "test"
    assert manifest["accuracy"] == 0.1
    assert manifest["files"][0] == {
        "name": "metrics.parquet",
        "stored_name": stored[0].stored_name,
        "size": 18,
        "sha256": hashlib.sha256(b"metrics of the run").hexdigest(),
    }
    text = storage.read_bytes("evaluations/e1/_manifest.json")
    assert text == json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    for name, data in FILES.items():
        assert storage.read_committed("evaluations/e1", name) == data
    assert storage.committed_files("evaluations/e1", "predictions") == [
        f"{storage.uri}/evaluations/e1/{stored[1].stored_name}"
    ]


def test_the_same_content_again_is_a_no_op(storage: Storage) -> None:
    assert commit(storage, volatile={"host": "a"})
    before = storage.read_bytes("evaluations/e1/_manifest.json")
    assert not commit(storage, dict(reversed(FILES.items())), volatile={"host": "b"})
    assert storage.read_bytes("evaluations/e1/_manifest.json") == before
    assert storage.list_files(".staging") == []
    assert len(storage.list_files("evaluations")) == 4


@pytest.mark.parametrize(
    ("files", "manifest"),
    [
        ({**FILES, "metrics.parquet": b"other metrics"}, {}),
        ({"metrics.parquet": FILES["metrics.parquet"]}, {}),
        (FILES, {"split": "train"}),
    ],
)
def test_other_content_is_a_conflict_and_changes_nothing(
    storage: Storage, files: dict[str, bytes], manifest: dict[str, str]
) -> None:
    commit(storage)
    before = storage.list_files("evaluations")
    with pytest.raises(ConflictError) as error:
        commit(storage, files, **manifest)
    assert str(error.value) == (
        f"{storage.uri}/evaluations/e1: exists with other content; choose another name or move it away"
    )
    assert storage.list_files("evaluations") == before
    assert storage.list_files(".staging") == []
    assert storage.read_committed("evaluations/e1", "metrics.parquet") == FILES["metrics.parquet"]


def test_a_pending_folder_travels_to_other_processes(storage: Storage) -> None:
    pending = storage.pending_folder("evaluations/e1")
    script = """
import pickle, sys
pending = pickle.loads(bytes.fromhex(sys.argv[1]))
print(pickle.dumps(pending.write(sys.argv[2], bytes.fromhex(sys.argv[3]))).hex())
"""
    stored = [
        pickle.loads(bytes.fromhex(python_output(script, pickle.dumps(pending).hex(), name, data.hex())))
        for name, data in FILES.items()
    ]
    assert pending.commit(stored, {})
    assert storage.read_committed("evaluations/e1", "metrics.parquet") == FILES["metrics.parquet"]


def test_a_retried_part_replaces_the_first_try(storage: Storage) -> None:
    pending = storage.pending_folder("evaluations/e1")
    pending.write("part.parquet", b"first try")
    pending.write("forgotten.parquet", b"never committed")
    assert pending.commit([pending.write("part.parquet", b"second")], {})
    assert storage.read_committed("evaluations/e1", "part.parquet") == b"second"
    assert len(storage.list_files("evaluations")) == 3


def test_an_aborted_folder_leaves_nothing_and_touches_no_other(storage: Storage) -> None:
    aborted, kept = storage.pending_folder("evaluations/e1"), storage.pending_folder("evaluations/e1")
    stored = kept.write("metrics.parquet", b"the same")
    aborted.write("metrics.parquet", b"the same")
    aborted.abort()
    assert kept.commit([stored], {})
    kept.abort()
    aborted.abort()
    assert storage.read_committed("evaluations/e1", "metrics.parquet") == b"the same"
    assert storage.list_files(".staging") == []


def test_a_changed_committed_file_is_found_out(storage: Storage) -> None:
    commit(storage)
    uri = storage.committed_files("evaluations/e1", "metrics")[0]
    for damaged in (b"Metrics of the run", b"metrics"):
        storage.write_bytes(uri.removeprefix(f"{storage.uri}/"), damaged)
        with pytest.raises(DataError) as error:
            storage.read_committed("evaluations/e1", "metrics.parquet")
        assert str(error.value) == (f"{uri}: not the content that was committed; delete the folder and make it again")


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"{}", b'{"files": [{"name": "x"}]}', b"\xff"])
def test_a_damaged_manifest_is_found_out(storage: Storage, damaged: bytes) -> None:
    commit(storage)
    storage.write_bytes("evaluations/e1/_manifest.json", damaged)
    with pytest.raises(DataError, match=r"_manifest\.json: damaged; delete the folder"):
        storage.read_manifest("evaluations/e1")


def test_what_is_not_committed_is_missing(storage: Storage) -> None:
    storage.write_bytes("evaluations/e1/metrics.parquet", b"x")
    assert storage.read_manifest("evaluations/e1") is None
    for call in (storage.committed_files, lambda path: storage.read_committed(path, "metrics.parquet")):
        with pytest.raises(MissingError, match=r"evaluations/e1: not there, or not committed$"):
            call("evaluations/e1")
    commit(storage, path="evaluations/e2")
    with pytest.raises(MissingError, match=r"evaluations/e2: has no file 'other\.parquet'$"):
        storage.read_committed("evaluations/e2", "other.parquet")


def test_a_deleted_folder_can_be_committed_again(storage: Storage) -> None:
    commit(storage)
    storage.delete_folder("evaluations/e1")
    assert storage.read_manifest("evaluations/e1") is None
    assert commit(storage)


def test_only_old_leftovers_are_removed(storage: Storage) -> None:
    killed = storage.pending_folder("evaluations/e1")
    killed.write("metrics.parquet", b"x")
    storage.remove_leftovers(older_than_s=DAY_S)
    assert len(storage.list_files(".staging")) == 1
    storage.remove_leftovers(older_than_s=-DAY_S)
    assert storage.list_files(".staging") == []


@pytest.mark.parametrize("days", [2, -2])
def test_a_wrong_clock_of_this_machine_deletes_nobodys_work_in_progress(
    storage: Storage, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = storage.pending_folder("evaluations/e1")
    file = live.write("metrics.parquet", b"x")
    true_time = time.time
    monkeypatch.setattr("time.time", lambda: true_time() + days * DAY_S)
    other = storage.pending_folder("evaluations/e2")
    assert live.commit([file], {})
    # Nor does such a clock keep what is old.
    other.write("metrics.parquet", b"x")
    storage.remove_leftovers(older_than_s=-DAY_S)
    assert storage.list_files(".staging") == []
    storage.remove_leftovers()


def test_a_local_storage_that_vanishes_is_not_begun_anew(local: Storage) -> None:
    local.write_bytes("runs/a", b"x")
    shutil.rmtree(local.uri)
    for write in (local.write_bytes, local.create_bytes):
        with pytest.raises(StorageError, match="the folder is gone: deleted, or no longer mounted"):
            write("runs/b", b"x")
    assert not Path(local.uri).exists()


def test_of_processes_committing_the_same_exactly_one_has_done_it(uri: str) -> None:
    results = race(uri, ["content"] * 6)
    assert results["commit"] == ["False"] * 5 + ["True"]
    assert results["create"] == ["False"] * 5 + ["True"]
    assert open_storage(uri).read_committed("evaluations/e1", "a.parquet") == b"content"


def test_of_processes_committing_different_content_one_wins_and_stays(uri: str) -> None:
    results = race(uri, ["content 1", "content 2", "content 3", "content 1"])
    assert results["commit"].count("True") == 1
    assert results["commit"].count("conflict") in (2, 3)
    storage = open_storage(uri)
    assert len(storage.list_files("evaluations")) == 3
    assert storage.read_committed("evaluations/e1", "a.parquet").startswith(b"content ")


@pytest.mark.fault
@pytest.mark.parametrize(
    ("uri", "events", "least_points"),
    [
        ("local", "open,os.mkdir,os.rename,os.link,os.remove,os.rmdir", 15),
        pytest.param("s3", "http.client.send", 12, marks=[pytest.mark.s3, pytest.mark.slow]),
    ],
    indirect=["uri"],
)
def test_a_commit_killed_anywhere_is_whole_or_absent_and_a_rerun_completes_it(
    uri: str, events: str, least_points: int
) -> None:
    points, status = map(int, python_output(COMMIT + KILLED_COMMITS, uri, events).split())
    assert status == 0
    assert points >= least_points
    files = {"a.parquet": b"aaaa", "b.parquet": b"bb"}
    states = []
    for n in range(1, points + 2):
        storage = open_storage(f"{uri}/{n}")
        was_committed = storage.read_manifest("evaluations/e1") is not None
        states.append((was_committed, storage.exists("evaluations/e1/_SUCCESS")))
        if storage.is_local and not was_committed:
            assert storage.list_files() == []
        assert commit(storage, files) is not was_committed
        for name, data in files.items():
            assert storage.read_committed("evaluations/e1", name) == data
        assert len(storage.list_files()) == 4
        assert storage.exists("evaluations/e1/_SUCCESS")
    # The points lie on both sides of the commit; between S3's manifest and its marker too.
    assert set(states) == {(False, False), (True, True)} | (set() if storage.is_local else {(True, False)})


def test_a_storage_pickles_as_its_uri_alone(storage: Storage) -> None:
    storage.write_bytes("x", b"x")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage
    assert copy.read_bytes("x") == b"x"
    assert repr(storage) == f"Storage(uri={storage.uri!r})"
    assert len(pickle.dumps(storage)) < 100 + len(storage.uri)


# Local alone


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
    with pytest.raises(StorageError, match=r"part\.parquet: written by a worker, and not here; several machines need"):
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
    script = """
import os, sys
from mnist_ray.errors import StorageError
storage = open_storage(sys.argv[1])
storage.write_bytes("runs/a", b"old")
for write in (storage.write_bytes, lambda path, data: commit(storage, {"a.parquet": data})):
    try:
        write("runs/a", bytes(1 << 20))
    except StorageError as error:
        print(error)
print(storage.read_bytes("runs/a"), storage.list_files(), storage.list_files(".staging"))
"""
    command = on_small_disk(tmp_path, "128k", sys.executable, "-c", COMMIT + script, str(tmp_path))
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    reason = "can't be written: the disk is full; free some space or choose another storage"
    lines = done.stdout.splitlines()
    assert lines[0] == f"storage='{tmp_path}/runs/a': {reason}"
    assert lines[1].startswith(f"storage='{tmp_path}/.staging/")
    assert lines[1].endswith(reason)
    assert lines[2] == "b'old' [FileEntry(path='runs/a', size=3)] []"


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
