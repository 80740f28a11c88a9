"""A real S3 server process for the tests: moto's, on the loopback, in memory, ended by its pid."""

import contextlib
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.loaders import JSONFileLoader

START_TIMEOUT_S = 60


@dataclass(frozen=True)
class S3Server:
    """A running server and the environment that makes boto3 and pyarrow use it."""

    endpoint: str

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test-key-id",
            "AWS_SECRET_ACCESS_KEY": "test-secret-key",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            # Nothing of the person's own account, and no wait for a cloud host's metadata.
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Points this process, and those it starts, at the server."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in self.env.items():
            monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True, scope="session")
def _read_botocores_files_once() -> None:
    """Reading the description of S3 is most of what a new client takes, and a storage makes two."""
    read, contents = JSONFileLoader.load_file, {}

    def load_file(loader: JSONFileLoader, path: str) -> object:
        if path not in contents:
            contents[path] = read(loader, path)
        return contents[path]

    JSONFileLoader.load_file = load_file


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_s3_server(tmp_path_factory.mktemp("moto") / "server.log") as server:
        yield server


@contextlib.contextmanager
def running_s3_server(log: Path) -> Iterator[S3Server]:
    """Runs a server until the block ends."""
    command = [sys.executable, "-m", "tests.support.checking_moto", "-H", "127.0.0.1", "-p", "0"]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=Path(__file__).parents[2])
    try:
        yield S3Server(_await_endpoint(process, log))
    finally:
        process.kill()
        process.wait()


def _await_endpoint(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        # The server picks a free port and says which.
        said = re.search(r"Running on (http://127\.0\.0\.1:[1-9]\d*)\s", log.read_text())
        if said:
            return said[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    pytest.fail(f"the S3 server did not start: {log.read_text()}")


@pytest.fixture
def s3_uri(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """s3://bucket/prefix in a bucket of its own, with the environment set."""
    s3_server.use(monkeypatch)
    bucket = f"bucket-{secrets.token_hex(6)}"
    client = boto3.Session().client("s3")
    client.create_bucket(Bucket=bucket)
    client.close()
    return f"s3://{bucket}/some/prefix"
