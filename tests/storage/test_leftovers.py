"""What deletions and killed writers leave, local and on S3."""

import os
from pathlib import Path

import boto3
import pytest

from mnist_ray.storage.storage import Storage, open_storage
from tests.support.commits import DAY_S, commit
from tests.support.scripted_s3 import Answer, scripted_server, storage_at


def test_an_object_is_deleted_once_and_for_all(storage: Storage) -> None:
    storage.write_bytes("runs/a/x", b"x")
    storage.write_bytes("runs/a/y", b"y")
    for _ in range(2):
        storage.delete("runs/a/x")
        assert [entry.path for entry in storage.list_files()] == ["runs/a/y"]


def test_a_deletion_on_s3_begins_with_the_named_objects_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a", "best/x", "config.json", "_manifest.json", "zero"]
    listed = "".join(f"<Contents><Key>prefix/runs/r/{name}</Key><Size>1</Size></Contents>" for name in names)

    def answer(method: str, path: str, times: int) -> Answer:
        return 200, f"<ListBucketResult>{listed}</ListBucketResult>".encode() if method == "GET" else b""

    with scripted_server(answer) as (endpoint, asked):
        storage_at(endpoint, monkeypatch).delete_folder("runs/r", first=("config.json", "not there", "best/x"))
    deleted = [line.removeprefix("DELETE /bucket/prefix/runs/r/") for line in asked if line.startswith("DELETE")]
    assert deleted[:3] == ["_manifest.json", "config.json", "best/x"]
    assert sorted(deleted[3:]) == ["a", "zero"]


def test_a_deletion_that_was_killed_is_finished_at_any_age(local: Storage) -> None:
    commit(local)
    half_deleted = Path(local.uri, ".staging/deleted-0123456789abcdef")
    half_deleted.mkdir()
    (half_deleted / "model.safetensors").write_bytes(b"12345")
    live = local.pending_folder("evaluations/e2")
    live.write("metrics.parquet", b"x")
    assert not half_deleted.exists()
    assert len(local.list_files(".staging")) == 1


def test_leftovers_tell_their_bytes(storage: Storage) -> None:
    assert storage.leftovers(older_than_s=0) == []
    for data in (b"x" * 10, b"y" * 20):
        storage.pending_folder("evaluations/e1").write("metrics.parquet", data)
    assert storage.leftovers() == []
    assert sorted(leftover.size for leftover in storage.leftovers(older_than_s=0)) == [10, 20]
    for leftover in storage.leftovers(older_than_s=0):
        storage.remove(leftover)
        # Another process may remove it too.
        storage.remove(leftover)
    assert storage.leftovers(older_than_s=0) == []


@pytest.mark.s3
def test_an_unfinished_upload_tells_its_bytes(s3_uri: str) -> None:
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    client = boto3.Session().client("s3")
    place = {"Bucket": bucket, "Key": f"{prefix}/predictions/p/part"}
    upload = client.create_multipart_upload(**place)["UploadId"]
    for number, size in ((1, 5 << 20), (2, 7)):
        client.upload_part(**place, UploadId=upload, PartNumber=number, Body=bytes(size))
    storage = open_storage(s3_uri)
    (leftover,) = storage.leftovers(older_than_s=0)
    assert leftover.size == (5 << 20) + 7
    storage.remove(leftover)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)


def test_a_listing_tells_when_each_object_was_written(storage: Storage) -> None:
    before = storage.now()
    storage.write_bytes("runs/a", b"x")
    # A server's clock shows whole seconds.
    for entry in (*storage.list_files(), storage.entry("runs/a")):
        assert before - 1 <= entry.written_at <= storage.now() + 1
    if storage.is_local:
        os.utime(Path(storage.uri, "runs/a"), (before - DAY_S, before - DAY_S))
        (entry,) = storage.list_files()
        assert entry.written_at == pytest.approx(before - DAY_S, abs=1e-3)
