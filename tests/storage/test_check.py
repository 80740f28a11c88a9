"""What `mnist-ray storage check` prints, and what it finds out."""

import json
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ClientError

from mnist_ray.cli.main import run_command
from mnist_ray.errors import StorageError
from mnist_ray.storage.s3 import S3Backend
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing
from tests.support.faulty_proxy import faulty_proxy
from tests.support.s3_fixtures import S3Server
from tests.support.scripted_s3 import Answer, always, refusal, scripted_server, storage_at

FOLDER_PROOFS = """\
ok   write              an object of 31 bytes was created
ok   conditional write  a second object of its name was refused
ok   read               it has the content that was written
ok   list               it is listed with its size
ok   delete             it is gone
"""
PROOFS = FOLDER_PROOFS.replace("ok   read", "ok   checksum           content damaged in transit is refused\nok   read")
OVERWRITES = "no conditional writes (If-None-Match is ignored), so two commits could overwrite each other"


def test_a_folder_is_proven_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["storage", "check", f"{tmp_path}/new"]) == 0
    assert capsys.readouterr().out == f"storage {tmp_path}/new: kind local folder\n{FOLDER_PROOFS}"
    assert [path.name for path in tmp_path.rglob("*")] == ["new", ".staging"]


def test_a_folder_that_can_not_be_made_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["storage", "check", "/proc/mnist-ray"]) == 4
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.s3
def test_an_s3_is_proven_and_its_place_is_told_without_a_secret(
    s3_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["storage", "check", s3_uri, "--json"]) == 0
    as_json = capsys.readouterr().out
    found = json.loads(as_json)
    assert found["storage"] == s3_uri
    assert (found["kind"], found["region"]) == ("S3", "us-east-1")
    assert found["endpoint"].startswith("http://127.0.0.1:")
    assert found["credentials"] == "from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    assert [f"ok   {row['capability']:18} {row['proof']}" for row in found["proofs"]] == PROOFS.splitlines()
    assert run_command(["storage", "check", s3_uri]) == 0
    as_text = capsys.readouterr().out
    assert as_text.endswith(PROOFS)
    assert as_text.startswith(f"storage {s3_uri}: kind S3, endpoint {found['endpoint']}, region us-east-1, credentials")
    assert "test-" not in as_json + as_text
    assert open_storage(s3_uri).list_files(".staging") == []


@pytest.mark.s3
def test_credentials_of_a_profile_are_told_by_their_source(
    s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = secret-1\naws_secret_access_key = secret-2\n")
    endpoint = boto3.Session().client("s3").meta.endpoint_url
    (tmp_path / "config").write_text(f"[profile mine]\nregion = eu-west-3\nendpoint_url = {endpoint}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert run_command(["storage", "check", s3_uri]) == 0
    printed = capsys.readouterr().out
    place = f"endpoint {endpoint}, region eu-west-3, credentials from the shared credentials file\n"
    assert printed == f"storage {s3_uri}: kind S3, {place}{PROOFS}"
    # Random access goes another way, through Arrow: it must find the same.
    storage = open_storage(s3_uri)
    storage.write_bytes("x", b"content")
    with storage.open_input("x") as file:
        assert file.read() == b"content"


ROLE = b"""<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>ROLEKEY</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>
<Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""


@pytest.mark.s3
def test_the_role_of_a_profile_signs_random_access_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(
        "[profile keys]\naws_access_key_id = KEYS\naws_secret_access_key = s\n"
        "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = keys\n"
    )

    def answer(method: str, path: str, times: int) -> Answer:
        return 200, ROLE if method == "POST" else b"content"

    with scripted_server(answer) as (endpoint, asked):
        storage = storage_at(endpoint, monkeypatch)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "role")
        assert storage.place()["credentials"] == "from an assumed role"
        with storage.open_input("x") as file:
            assert file.read() == b"content"
    assert {line.split()[0]: line.signer for line in asked} == {"POST": "KEYS", "HEAD": "ROLEKEY", "GET": "ROLEKEY"}


@pytest.mark.s3
def test_a_server_that_ignores_the_condition_is_found_out_by_each_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(method: str, path: str, times: int) -> Answer:
        return (404, b"") if method == "HEAD" and path != "/bucket" else (200, b"")

    with scripted_server(answer) as (endpoint, asked):
        storage = storage_at(endpoint, monkeypatch)
        with pytest.raises(StorageError, match=r"conditional writes \(If-None-Match is ignored\)"):
            storage.check()
        assert run_command(["storage", "check", storage.uri]) == 4
        assert run_command(["train", "--dataset", "digits", "--storage", storage.uri]) == 4
    error = f"mnist-ray: error: storage='s3://bucket/prefix': {OVERWRITES}; use another storage\n"
    assert without_doing(capsys.readouterr().err) == error * 2
    assert len(asked) == 3 * 4


@pytest.mark.s3
def test_a_server_that_keeps_what_was_damaged_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(method: str, path: str, times: int) -> Answer:
        if method == "HEAD" and path != "/bucket":
            return 404, b""
        return refusal(412, "PreconditionFailed") if path.endswith("/object") and times else (200, b"")

    with scripted_server(answer, creator="another") as (endpoint, asked):
        storage = storage_at(endpoint, monkeypatch)
        assert run_command(["storage", "check", storage.uri]) == 4
    assert capsys.readouterr().err == (
        "mnist-ray: error: storage='s3://bucket/prefix': accepts content damaged in transit, without verifying "
        "its checksum; use another storage\n"
    )
    assert [line for line in asked if line.endswith("/damaged")] == [asked[-2]]


@pytest.mark.s3
def test_a_bad_moment_and_a_damaged_proof_are_no_refusal_of_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {0: refusal(503, "SlowDown"), 1: refusal(400, "XAmzContentSHA256Mismatch")}
    with scripted_server(lambda _method, _path, times: answers.get(times, (200, b""))) as (endpoint, asked):
        backend = S3Backend("s3://bucket/prefix")
        storage_at(endpoint, monkeypatch)
        backend.client  # noqa: B018  (made now, while the endpoint is set)
        assert backend.refuses_damage("damaged")
    assert asked.count("PUT /bucket/prefix/damaged") == 2
    with scripted_server(always(refusal(403, "AccessDenied"))) as (endpoint, _):
        storage_at(endpoint, monkeypatch)
        with pytest.raises(ClientError, match="AccessDenied"):
            S3Backend("s3://bucket/prefix").refuses_damage("damaged")


def test_what_is_damaged_under_tls_is_tlss_to_refuse() -> None:
    backend = S3Backend("s3://bucket/prefix")
    # Nobody is there who could be asked.
    backend.client = SimpleNamespace(meta=SimpleNamespace(endpoint_url="https://nobody.invalid"))
    assert backend.refuses_damage("damaged")


@pytest.mark.s3
def test_a_server_that_refuses_conditions_is_told_to_lack_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, path: str, times: int) -> Answer:
        return refusal(501, "NotImplemented") if method == "PUT" else (200, b"")

    with scripted_server(answer) as (endpoint, _):
        storage = storage_at(endpoint, monkeypatch)
        with pytest.raises(StorageError, match=r"lacks a required function, maybe conditional writes"):
            storage.check()


@pytest.mark.s3
def test_a_proxy_that_repeats_conditional_writes_is_no_obstacle(
    s3_uri: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with faulty_proxy(s3_server.endpoint, lambda line, _: "twice" if line.startswith("PUT") else None) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert run_command(["storage", "check", s3_uri]) == 0
        assert capsys.readouterr().out.endswith(PROOFS)
        pending = open_storage(s3_uri).pending_folder("evaluations/e")
        assert pending.commit([pending.write("metrics.parquet", b"x")], {})
        train = ["train", "--dataset", "digits", "--hidden-sizes", "8", "--epochs", "1", "--name", "a"]
        assert run_command([*train, "--storage", s3_uri]) == 0
    assert proxy.done["twice"] > 2
