"""Committed folders, local and on S3."""

import hashlib
import json
import pickle
import shutil
import time
from pathlib import Path

import pytest

from mnist_ray.errors import ConflictError, DataError, StorageError
from mnist_ray.storage.storage import MissingError, Storage, open_storage
from tests.support.commits import COMMIT, DAY_S, FILES, commit, python_output, race

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
    (path,) = [entry.path for entry in storage.list_files("evaluations/e1") if "/metrics" in entry.path]
    for damaged in (b"Metrics of the run", b"metrics"):
        storage.write_bytes(path, damaged)
        with pytest.raises(DataError) as error:
            storage.read_committed("evaluations/e1", "metrics.parquet")
        assert str(error.value) == (
            f"{storage.uri}/{path}: not the content that was committed; delete the folder and make it again"
        )


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"{}", b'{"files": [{"name": "x"}]}', b"\xff"])
def test_a_damaged_manifest_is_found_out(storage: Storage, damaged: bytes) -> None:
    commit(storage)
    storage.write_bytes("evaluations/e1/_manifest.json", damaged)
    with pytest.raises(DataError, match=r"_manifest\.json: damaged; delete the folder"):
        storage.read_manifest("evaluations/e1")


def test_what_is_not_committed_is_missing(storage: Storage) -> None:
    storage.write_bytes("evaluations/e1/metrics.parquet", b"x")
    assert storage.read_manifest("evaluations/e1") is None
    with pytest.raises(MissingError, match=r"evaluations/e1: not there, or not committed$"):
        storage.read_committed("evaluations/e1", "metrics.parquet")
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
