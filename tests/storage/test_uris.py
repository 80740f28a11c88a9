"""The URIs of storages."""

from pathlib import Path

import pytest

from mnist_ray.errors import ConfigError
from mnist_ray.storage.storage import Storage, check_uri, open_storage

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
