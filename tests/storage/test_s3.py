import pickle
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pyarrow
import pyarrow.parquet
import pytest

from mnist_ray.errors import StorageError
from mnist_ray.storage import retries
from mnist_ray.storage.s3 import MULTIPART_BYTES
from mnist_ray.storage.storage import FileEntry, MissingError, open_storage, storage_errors
from tests.support.faulty_proxy import faulty_proxy
from tests.support.s3_fixtures import S3Server
from tests.support.scripted_s3 import Answer, always, refusal, scripted_server, storage_at

pytestmark = pytest.mark.s3

REPOSITORY = Path(__file__).parents[2]


def test_a_missing_bucket_is_named(s3_uri: str) -> None:
    storage = open_storage("s3://no-such-bucket-here/prefix")
    reason = "the bucket does not exist; create it or correct the name"
    calls = {
        "read": [lambda: storage.read_bytes("x"), lambda: storage.exists("x"), lambda: storage.read_manifest("x")],
        "listed": [storage.list_files, storage.list_folders, lambda: storage.pending_folder("x")],
        "written": [storage.check, lambda: storage.write_bytes("x", b"x"), lambda: storage.create_bytes("x", b"x")],
        "deleted": [lambda: storage.delete_folder("x")],
    }
    for action, doing in calls.items():
        for call in doing:
            with pytest.raises(StorageError) as error:
                call()
            assert not isinstance(error.value, MissingError)
            assert str(error.value).startswith("storage='s3://no-such-bucket-here/prefix")
            assert str(error.value).endswith(f": can't be {action}: {reason}")


def test_parts_have_names_that_tell_their_content(s3_uri: str) -> None:
    pending = open_storage(s3_uri).pending_folder("evaluations/e1")
    stored = pending.write("predictions-00000.parquet", b"abc")
    assert stored.stored_name == "predictions-00000-ba7816bf8f01.parquet"
    assert pending.commit([stored], {})
    names = [entry.path for entry in open_storage(s3_uri).list_files("evaluations")]
    assert names == [f"evaluations/e1/{name}" for name in ("_SUCCESS", "_manifest.json", stored.stored_name)]


def test_a_manifest_without_its_marker_is_completed(s3_uri: str) -> None:
    storage = open_storage(s3_uri)
    storage.complete_commit("evaluations/e1")
    assert storage.list_files() == []
    pending = storage.pending_folder("evaluations/e1")
    pending.commit([pending.write("metrics.parquet", b"x")], {})
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    boto3.Session().client("s3").delete_object(Bucket=bucket, Key=f"{prefix}/evaluations/e1/_SUCCESS")
    assert not storage.exists("evaluations/e1/_SUCCESS")
    storage.complete_commit("evaluations/e1")
    assert storage.exists("evaluations/e1/_SUCCESS")


def test_prefixes_that_begin_alike_stay_apart(s3_uri: str) -> None:
    storage, neighbour = open_storage(f"{s3_uri}/a"), open_storage(f"{s3_uri}/ab")
    for each in (storage, neighbour):
        each.write_bytes("runs/x", b"x")
    storage.delete_folder("runs")
    assert storage.list_files() == []
    assert neighbour.list_files() == [FileEntry("runs/x", 1)]


def test_a_bucket_without_a_prefix_is_a_storage(s3_uri: str) -> None:
    storage = open_storage("/".join(s3_uri.split("/")[:3]))
    storage.check()
    storage.write_bytes("runs/x", b"x")
    assert storage.list_files() == [FileEntry("runs/x", 1)]
    assert storage.list_folders() == ["runs"]
    assert storage.uri_of("runs/x") == f"{storage.uri}/runs/x"


def test_a_listing_of_several_pages_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def page(name: str, more: str) -> Answer:
        written = "<LastModified>2026-01-02T03:04:05Z</LastModified>"
        entry = f"<Contents><Key>prefix/images/{name}.png</Key><Size>7</Size>{written}</Contents>"
        return 200, f"<ListBucketResult>{more}{entry}</ListBucketResult>".encode()

    def answer(method: str, path: str, times: int) -> Answer:
        if "continuation-token=page2" in path:
            return page("b", "")
        return page("a", "<IsTruncated>true</IsTruncated><NextContinuationToken>page2</NextContinuationToken>")

    with scripted_server(answer) as (endpoint, _):
        entries = storage_at(endpoint, monkeypatch).list_files("images")
    assert entries == [FileEntry("images/a.png", 7), FileEntry("images/b.png", 7)]


def test_a_large_object_is_uploaded_in_parts(s3_uri: str) -> None:
    data = bytes(range(256)) * (MULTIPART_BYTES // 256) + b"the end"
    storage = open_storage(s3_uri)
    storage.write_bytes("large", data)
    assert storage.read_bytes("large") == data
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    tag = boto3.Session().client("s3").head_object(Bucket=bucket, Key=f"{prefix}/large")["ETag"]
    # The tag of an object made of n parts ends with -n.
    assert tag.strip('"').endswith("-9")


def multipart_uploads(s3_uri: str) -> list[str]:
    bucket = s3_uri.split("/")[2]
    listed = boto3.Session().client("s3").list_multipart_uploads(Bucket=bucket)
    return sorted(upload["Key"] for upload in listed.get("Uploads", []))


KILLED_UPLOAD = """
import os, signal, sys
from mnist_ray.storage import retries
from mnist_ray.storage.s3 import MULTIPART_BYTES
from mnist_ray.storage.storage import open_storage

storage = open_storage(sys.argv[1])
upload_part = storage._backend.client.meta.events
upload_part.register("before-send.s3.UploadPart", lambda **_: os.kill(os.getpid(), int(sys.argv[2])))
storage.write_bytes("large", bytes(MULTIPART_BYTES + 1))
"""


def test_the_parts_of_a_killed_upload_are_swept_away(s3_uri: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_UPLOAD, s3_uri, str(signal.SIGKILL)], cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL
    boto3.Session().client("s3").create_multipart_upload(Bucket=s3_uri.split("/")[2], Key="somebody/else's")
    assert multipart_uploads(s3_uri) == ["some/prefix/large", "somebody/else's"]
    # To this server all uploads are old.
    open_storage(s3_uri).pending_folder("evaluations/e1")
    assert multipart_uploads(s3_uri) == ["somebody/else's"]


def test_an_interrupted_upload_leaves_no_parts(s3_uri: str) -> None:
    stopped = subprocess.run(
        [sys.executable, "-c", KILLED_UPLOAD, s3_uri, str(signal.SIGINT)], cwd=REPOSITORY, capture_output=True
    )
    assert b"KeyboardInterrupt" in stopped.stderr
    assert multipart_uploads(s3_uri) == []


def test_an_upload_that_fails_leaves_no_parts(
    s3_server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(line: str, _: int) -> str | None:
        return "forbidden" if "partNumber=3" in line else None

    with faulty_proxy(s3_server.endpoint, choose) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(StorageError, match=r"/large': can't be written: access denied"):
            open_storage(s3_uri).write_bytes("large", bytes(MULTIPART_BYTES + 1))
        assert multipart_uploads(s3_uri) == []
    assert proxy.done["forbidden"] == 1


def uploads_of(*begun: str) -> bytes:
    uploads = [
        f"<Upload><Key>prefix/{number}</Key><UploadId>{number}</UploadId><Initiated>{time}</Initiated></Upload>"
        for number, time in enumerate(begun)
    ]
    return f"<ListMultipartUploadsResult>{''.join(uploads)}</ListMultipartUploadsResult>".encode()


def test_only_uploads_that_are_a_day_old_are_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    begun = [(now - timedelta(hours=hours)).isoformat() for hours in (25, 23, 26)]

    def answer(method: str, path: str, times: int) -> Answer:
        if method == "DELETE" and "uploadId=2" in path:
            return refusal(404, "NoSuchUpload")
        return 200, uploads_of(*begun) if "uploads" in path else b"<ListBucketResult/>" if method == "GET" else b""

    # The scripted server has no clock of its own; a real one's is asked in test_storage.py.
    monkeypatch.setattr("mnist_ray.storage.s3.S3Backend.now", lambda _: now.timestamp())
    with scripted_server(answer) as (endpoint, asked):
        storage_at(endpoint, monkeypatch).remove_leftovers()
    assert [line for line in asked if "DELETE" in line] == ["DELETE /bucket/prefix/0", "DELETE /bucket/prefix/2"]


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (501, "NotImplemented")])
def test_a_server_that_tells_no_uploads_is_no_obstacle(status: int, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, path: str, times: int) -> Answer:
        return refusal(status, code) if "uploads" in path else (200, b"<ListBucketResult/>" if method == "GET" else b"")

    with scripted_server(answer) as (endpoint, _):
        storage_at(endpoint, monkeypatch).pending_folder("evaluations/e1")


def test_older_servers_without_checksums_are_served(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    storage = open_storage(s3_uri)
    storage.check()
    pending = storage.pending_folder("evaluations/e1")
    assert pending.commit([pending.write("metrics.parquet", b"x")], {})
    assert storage.read_committed("evaluations/e1", "metrics.parquet") == b"x"


def test_parquet_is_read_without_fetching_the_whole_object(s3_uri: str) -> None:
    storage = open_storage(s3_uri)
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"example_index": list(range(1000)), "label": [3] * 1000})
    pyarrow.parquet.write_table(table, sink)
    storage.write_bytes("predictions.parquet", sink.getvalue().to_pybytes())
    with storage.open_input("predictions.parquet") as file:
        assert pyarrow.parquet.read_table(file, columns=["label"]).column("label").to_pylist() == [3] * 1000


def test_no_keys_in_the_pickle_or_the_text_of_a_storage_in_use(s3_uri: str) -> None:
    storage = open_storage(s3_uri)
    pending = storage.pending_folder("evaluations/e1")
    pending.write("metrics.parquet", b"x")
    for value in (storage, pending):
        assert b"test-secret-key" not in pickle.dumps(value)
        assert b"test-key-id" not in pickle.dumps(value)
        assert "test-" not in repr(value)
    assert pickle.loads(pickle.dumps(pending)) == pending


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (403, "AccessDenied", "access denied; ask for the right to read, write, list and delete here"),
        (
            403,
            "InvalidAccessKeyId",
            "the credentials are refused; check AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        (
            403,
            "SignatureDoesNotMatch",
            "the credentials are refused; check AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        (400, "ExpiredToken", "the credentials have expired; get new ones"),
        (418, "Teapot", "An error occurred (Teapot) when calling the PutObject operation: as told"),
    ],
)
def test_a_refusal_is_named(status: int, code: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(always(refusal(status, code))) as (endpoint, _):
        storage = storage_at(endpoint, monkeypatch)
        for call in (storage.check, lambda: storage.write_bytes("x", b"x"), lambda: storage.create_bytes("x", b"x")):
            with pytest.raises(StorageError) as error:
                call()
            assert str(error.value).startswith("storage='s3://bucket/prefix/")
            assert str(error.value).endswith(f": can't be written: {reason}")


def test_a_refusal_by_pyarrow_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(always(refusal(403, "AccessDenied"))) as (endpoint, _):
        storage = storage_at(endpoint, monkeypatch)
        with pytest.raises(StorageError) as error:
            storage.open_input("x")
    assert str(error.value) == (
        "storage='s3://bucket/prefix/x': can't be read: access denied; ask for the right to read, write, list and "
        "delete here"
    )


def test_a_read_only_storage_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, path: str, times: int) -> Answer:
        return (200, b"content") if method in ("GET", "HEAD") else refusal(403, "AccessDenied")

    with scripted_server(answer) as (endpoint, _):
        storage = storage_at(endpoint, monkeypatch)
        assert storage.read_bytes("x") == b"content"
        with pytest.raises(StorageError, match=r"can't be written: access denied"):
            storage.check()


def test_missing_credentials_are_named(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match=r"there are no credentials; check AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        open_storage(s3_uri).check()


def test_an_unknown_profile_is_named(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageError, match=r"can't be written: The config profile \(nobody\) could not be found$"):
        open_storage(s3_uri).check()


def test_an_endpoint_that_is_no_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError) as error:
        storage_at("127.0.0.1:9000", monkeypatch).check()
    assert str(error.value) == "AWS_ENDPOINT_URL: Invalid endpoint: 127.0.0.1:9000; write http(s)://host:port"


def test_an_endpoint_without_a_server_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        # Bound and not listening: the port stays ours, and every connection is refused.
        nobody.bind(("127.0.0.1", 0))
        storage = storage_at(f"http://127.0.0.1:{nobody.getsockname()[1]}", monkeypatch)
        with pytest.raises(StorageError, match=r"can't be written: the server can't be reached; check the network"):
            storage.check()
        with pytest.raises(StorageError, match=r"can't be read: the server can't be reached; check the network"):
            storage.open_input("x")


@pytest.mark.timeout(60)
def test_a_server_that_never_answers_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PROBE_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        storage = storage_at(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        with pytest.raises(StorageError, match=r"can't be written: the server can't be reached; check the network"):
            storage.check()


def test_a_server_that_is_out_of_service_for_a_while_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, path: str, times: int) -> Answer:
        return refusal(503, "SlowDown") if method == "PUT" and times < 3 else (200, b"")

    with scripted_server(answer) as (endpoint, asked):
        storage_at(endpoint, monkeypatch).write_bytes("x", b"x")
    assert asked.count("PUT /bucket/prefix/x") == 4


def test_a_body_that_breaks_off_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(always((200, b"the whole content")), breaks_off=2) as (endpoint, asked):
        assert storage_at(endpoint, monkeypatch).read_bytes("x") == b"the whole content"
    assert asked.count("GET /bucket/prefix/x") == 3


def test_a_body_that_always_breaks_off_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(always((200, b"the whole content")), breaks_off=9) as (endpoint, _):
        with pytest.raises(StorageError, match=r"x': can't be read: ") as error:
            storage_at(endpoint, monkeypatch).read_bytes("x")
        assert not isinstance(error.value, MissingError)


LOST = refusal(500, "InternalError")
EXISTS = refusal(412, "PreconditionFailed")
BUSY = refusal(409, "ConditionalRequestConflict")


@pytest.mark.parametrize(
    ("puts", "creator", "created"),
    [
        # The first request was carried out and its answer lost: the object in the way is this call's.
        ([LOST, EXISTS], None, True),
        ([LOST, EXISTS], "another", False),
        # Somebody else was first, though with the same content; or a proxy repeated the request unseen.
        ([EXISTS], "another", False),
        ([EXISTS], None, True),
        # The other writer's request failed, or was carried out.
        ([BUSY, BUSY, (200, b"")], "another", True),
        ([BUSY, EXISTS], "another", False),
        # What was busy may have been this call's own first request.
        ([LOST, BUSY, EXISTS], None, True),
    ],
)
def test_a_creation_knows_its_own_object(
    puts: list[Answer], creator: str | None, created: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(method: str, path: str, times: int) -> Answer:
        return puts[times] if method == "PUT" else (200, b"mine")

    with scripted_server(answer, creator=creator) as (endpoint, asked):
        assert storage_at(endpoint, monkeypatch).create_bytes("x", b"mine") is created
    assert asked.count("PUT /bucket/prefix/x") == len(puts)


def test_what_stood_in_the_way_of_a_creation_and_has_gone_was_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, path: str, times: int) -> Answer:
        return EXISTS if method == "PUT" else (404, b"")

    with scripted_server(answer) as (endpoint, _):
        assert not storage_at(endpoint, monkeypatch).create_bytes("x", b"mine")


def test_a_creation_that_stays_busy_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(always(BUSY)) as (endpoint, asked):
        storage = storage_at(endpoint, monkeypatch)
        with pytest.raises(StorageError, match=r"can't be written: .*ConditionalRequestConflict"):
            storage.create_bytes("x", b"mine")
    assert asked.count("PUT /bucket/prefix/x") == 6


def test_an_outage_is_waited_for_by_many_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, path: str, times: int) -> Answer:
        return refusal(500, "InternalError") if method == "GET" and times < 5 else (200, b"content")

    with scripted_server(answer) as (endpoint, asked), ThreadPoolExecutor(16) as pool:
        storage = storage_at(endpoint, monkeypatch)
        assert storage.exists("x")
        assert list(pool.map(storage.read_bytes, [f"run-{number}" for number in range(16)])) == [b"content"] * 16
    assert sum(line.startswith("GET ") for line in asked) == 16 * 6


def test_a_copy_that_fails_after_its_answer_has_begun_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, path: str, times: int) -> Answer:
        if method == "HEAD" or "list-type" in path:
            return (404, b"") if method == "HEAD" else (200, b"<ListBucketResult/>")
        is_copy = method == "PUT" and "evaluations/e1/a-" in path
        return (200, refusal(500, "InternalError")[1]) if is_copy and times < 2 else (200, b"<CopyObjectResult/>")

    with scripted_server(answer) as (endpoint, asked):
        pending = storage_at(endpoint, monkeypatch).pending_folder("evaluations/e1")
        assert pending.commit([pending.write("a.parquet", b"abc")], {})
    assert asked.count("PUT /bucket/prefix/evaluations/e1/a-ba7816bf8f01.parquet") == 3


def test_what_always_arrives_damaged_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "pause_s", lambda _: 0.0)
    with scripted_server(always(refusal(400, "BadDigest"))) as (endpoint, asked):
        storage = storage_at(endpoint, monkeypatch)
        with pytest.raises(StorageError, match=r"/prefix/x': can't be written: the content was damaged in transit;"):
            storage.write_bytes("x", b"mine")
    assert asked.count("PUT /bucket/prefix/x") == retries.ATTEMPTS


def test_an_upload_that_the_server_finds_damaged_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, path: str, times: int) -> Answer:
        return refusal(400, "BadDigest") if method == "PUT" and times < 2 else (200, b"")

    with scripted_server(answer) as (endpoint, asked):
        storage_at(endpoint, monkeypatch).write_bytes("x", b"mine")
    assert asked.count("PUT /bucket/prefix/x") == 3


def test_a_later_failure_of_an_open_object_is_a_storage_error(s3_uri: str) -> None:
    storage = open_storage(s3_uri)
    storage.write_bytes("data/x", b"0123456789")
    with storage.open_input("data/x") as file:
        storage.delete_folder("data")
        with pytest.raises(StorageError, match=r"/data/x'?: "), storage_errors(storage.uri_of("data/x")):
            file.read_at(4, 2)
