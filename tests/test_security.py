"""No secret leaves the environment, and hostile names arrive as they are or are refused; see docs/security.md."""

import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from mnist_ray.cli.main import run_command
from mnist_ray.data.datasets import load_examples
from mnist_ray.errors import CheckpointError
from mnist_ray.results.run_documents import with_checksum
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from mnist_ray.submission.submit import job_environment, stage_working_dir
from tests.support.doing_lines import without_doing
from tests.test_s3_end_to_end import png

CANARIES = {
    "AWS_ACCESS_KEY_ID": "canary-key-id-5b1f",
    "AWS_SECRET_ACCESS_KEY": "canary-secret-key-91d3",
    "AWS_SESSION_TOKEN": "canary-session-token-c40a",
    "RAY_AUTH_TOKEN": "canary-ray-token-of-more-than-32-characters-77e2",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-password-0f6c",
    "MLFLOW_TRACKING_TOKEN": "canary-mlflow-token-a8b5",
}
FILES = {
    ".env": "canary-dotenv-3e9d",
    "id_ed25519": "canary-private-key-d27b",
    ".aws/credentials": "canary-profile-664f",
}
SECRETS = [*CANARIES.values(), *FILES.values()]


@pytest.fixture
def secrets_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, also the home, with secrets in files and in the environment."""
    folder = tmp_path / "home"
    for name, secret in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"SECRET={secret}\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    for name, secret in CANARIES.items():
        monkeypatch.setenv(name, secret)
    return folder


def leaks(contents: Iterator[tuple[str, bytes]], *, marker: str) -> list[tuple[str, str]]:
    """Returns name and secret of what holds one; the marker must be found, or the search itself is broken."""
    found, has_marker = [], False
    for name, content in contents:
        has_marker = has_marker or marker.encode() in content
        found += [(name, secret) for secret in SECRETS if secret.encode() in content]
    assert has_marker
    return found


def contents(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields a file's bytes, and what is packed in them."""
    yield name, content
    if content.startswith(b"PAR1"):
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            yield f"{name} (metadata)", repr((file.schema_arrow.metadata, file.metadata.metadata)).encode()
            yield f"{name} (values)", repr(file.read().to_pylist()).encode()
    elif content.startswith(b"PK"):
        with zipfile.ZipFile(pa.BufferReader(content)) as archive:
            for member in archive.namelist():
                yield f"{name} ({member})", archive.read(member)


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    # Of a folder in use too: what vanishes meanwhile is not there.
    for parent, subfolders, names in os.walk(folder):
        subfolders.sort()
        for path in (Path(parent, name) for name in sorted(names)):
            if path.is_file() and not path.is_symlink():
                try:
                    content = path.read_bytes()
                except FileNotFoundError:
                    continue
                yield from contents(str(path.relative_to(folder)), content)


def objects_below(uri: str) -> Iterator[tuple[str, bytes]]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client = boto3.Session().client("s3")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page["Contents"]:
            answer = client.get_object(Bucket=bucket, Key=entry["Key"])
            yield from contents(entry["Key"], repr(answer["Metadata"]).encode())
            yield from contents(entry["Key"], answer["Body"].read())
    client.close()


def whole_pipeline(storage: str, images: Path, capfd: pytest.CaptureFixture[str], *trackers: str) -> str:
    """Runs every command that leaves something, and returns all that they print."""
    at, printed = ["--storage", storage], []

    def run(*arguments: str) -> str:
        assert run_command([*arguments, *at]) == 0
        shown = capfd.readouterr()
        printed.extend(shown)
        return shown.out

    train = ["train", "--dataset", "digits", "--epochs", "1", "--train-limit", "300", "--name", "canary-marker"]
    run(*train, *(part for tracker in trackers for part in ("--log", tracker)))
    evaluation = json.loads(run("evaluate", "--run", "canary-marker", "--dataset", "digits", "--json"))["evaluation"]
    for command in ("report", "compare"):
        run(command, evaluation)
    run("query", "SELECT * FROM lineage", "--evaluation", evaluation, "--csv")
    run("predict", "--run", "canary-marker", "--images", str(images), "--num-workers", "1")
    for kind in ("safetensors", "state-dict"):
        run("export", "canary-marker", "--to", kind, "--output", str(images.parent))
    for command in ("runs", "evaluations", "doctor"):
        run(command)
    return "".join(printed)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "exported" / "images"
    folder.mkdir(parents=True)
    digits = load_examples("digits", "test", data_dir=tmp_path).images[:3, 0].numpy()
    for number, pixels in enumerate(digits):
        (folder / f"{number}.png").write_bytes(png(pixels))
    (folder / "broken.png").write_bytes(b"junk")
    return folder


@pytest.mark.slow
def test_no_secret_is_in_anything_that_a_local_storage_holds_or_a_command_prints(
    secrets_around: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    printed = whole_pipeline(str(tmp_path / "storage"), images, capfd, "tensorboard", "mlflow")
    assert leaks(iter([("printed", printed.encode())]), marker="canary-marker") == []
    for folder in ("storage", "exported"):
        assert leaks(files_below(tmp_path / folder), marker="canary-marker") == []


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.usefixtures("blank_charts")
def test_no_secret_is_in_anything_that_a_bucket_holds_or_a_command_prints(
    s3_uri: str, secrets_around: Path, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    printed = whole_pipeline(f"{s3_uri}/storage", images, capfd)
    assert leaks(iter([("printed", printed.encode())]), marker="canary-marker") == []
    assert leaks(objects_below(f"{s3_uri}/storage"), marker="canary-marker") == []
    assert leaks(files_below(images.parent), marker="canary-marker") == []


def test_no_secret_is_in_what_a_job_is_made_of(secrets_around: Path) -> None:
    assert leaks(iter([("env", repr(job_environment({**os.environ, "AWS_REGION": "marker"})).encode())]),
                 marker="marker") == []  # fmt: skip
    with stage_working_dir("name: canary-marker\n") as folder:
        assert leaks(files_below(folder), marker="canary-marker") == []
        assert {path.name for path in folder.iterdir()} <= {"mnist_ray", "jobs", "job.yaml", "requirements.txt"}
        suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert suffixes <= {".py", ".html", ".yaml", ".txt"}


# What a shell, a path, a terminal, HTML, Markdown or rich would make something of.
HOSTILE_NAMES = [
    "; touch owned",
    "$(touch owned)",
    "`touch owned`",
    "'\"",
    "a\nb",
    "../../../tmp/owned",
    "/etc/passwd",
    "a\0b",
    "<script>alert(1)</script>",
    "\x1b]0;owned\x07",
    "-rf",
    ".hidden",
    "",
    "a" * 65,
    "ünï",
    "[/bold]",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_hostile_name_becomes_a_run_a_grid_or_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [
        ["train", "--dataset", "digits", f"--name={name}"],
        ["tune", "--grid", "smoke", f"--name={name}"],
        ["train", "--dataset", "digits", f"--variant={name}"],
        ["evaluate", "--dataset", "digits", f"--run={name}"],
        ["evaluate", "--dataset", "digits", f"--grid={name}"],
        ["predict", "--images", ".", f"--run={name}"],
        ["predict", "--images", ".", "--run", "a", f"--name={name}"],
        ["export", "--to", "safetensors", "--", name],
        ["report", "--", name],
        ["compare", "--", name],
        ["query", "SELECT 1", f"--evaluation={name}"],
        ["reproduce", "--", name],
    ]
    for command in commands:
        # What is only looked up may well be called so; it is not there.
        assert run_command(command) in ((2,) if command[0] in ("train", "tune", "evaluate") else (2, 3)), command
        shown = capsys.readouterr()
        assert (shown.out, without_doing(shown.err).count("\n")) == ("", 1), command
        assert "\x1b" not in shown.err
    assert [path.name for path in tmp_path.rglob("*")] == []


@pytest.mark.parametrize("value", HOSTILE_NAMES)
def test_no_hostile_value_becomes_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"optimizer": value}))
    for command in (
        ["train", f"--set=optimizer={value}"],
        ["train", f"--set={value}=1"],
        ["train", f"--dataset={value}"],
        ["train", f"--dropout={value}"],
        ["train", "--config", "a.yaml"],
        ["tune", "--grid", "a.yaml"],
        ["tune", "--grid", "smoke", f"--seeds={value}"],
        ["evaluate", "--run", "a", f"--split={value}"],
    ):
        assert run_command(command) == 2, command
        shown = capsys.readouterr()
        assert (shown.out, without_doing(shown.err).count("\n")) == ("", 1), command
        assert "\x1b" not in shown.err
    assert [path.name for path in tmp_path.rglob("*")] == ["a.yaml"]


CLASSES = [
    "; touch owned",
    "$(touch owned)",
    "`touch owned`\n```\n# Owned",
    "'\"\\ | x",
    "../../../tmp/owned",
    "a\0b",
    "<script>alert(1)</script>",
    "\x1b]0;owned\x07\x1b[2J",
    "[/bold] :smile:",
    "\u202egnp.\u2028'); DROP TABLE metrics; --",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a run of hostile class names, from a data set of a hostile path."""
    folder = tmp_path_factory.mktemp("hostile")
    digits = load_examples("digits", "train", data_dir=folder)
    rows = [int((digits.labels == label).nonzero()[place]) for place in range(20) for label in range(10)]
    place = folder / "$(touch owned);'\"<b>[/x]`|"
    place.mkdir(parents=True)
    images = [png(digits.images[row, 0].numpy()) for row in rows]
    labels = [CLASSES[int(digits.labels[row])] for row in rows]
    pq.write_table(pa.table({"image": images, "label": labels}), place / "a.parquet")
    at = ["--dataset", f"parquet:{place}", "--storage", str(folder / "storage")]
    assert run_command(["train", *at, "--epochs", "1", "--name", "a"]) == 0
    assert run_command(["evaluate", *at, "--run", "a"]) == 0
    return folder


def test_hostile_classes_and_paths_arrive_as_they_are_and_reach_no_terminal(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    at = ["--storage", str(hostile / "storage")]
    (evaluation,) = [path.name for path in (hostile / "storage/evaluations").iterdir()]
    sql = "SELECT DISTINCT class_name FROM per_class"
    assert run_command(["query", sql, "--evaluation", evaluation, "--json", *at]) == 0
    assert sorted(row["class_name"] for row in json.loads(capsys.readouterr().out)) == sorted(CLASSES)

    commands = [
        ["query", sql, "--evaluation", evaluation],
        ["report", evaluation],
        ["compare", evaluation],
        ["runs"],
        ["evaluations"],
    ]
    for command in commands:
        assert run_command([*command, *at]) == 0, command
    folder = tmp_path / "images <b>"
    folder.mkdir()
    for name in ("\x1b[2J; $(touch owned) [x].png", "a'; $(touch owned).png"):
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(folder / name)
    assert run_command(["predict", "--run", "a", "--images", str(folder), "--num-workers", "1", *at]) == 0
    assert run_command(["predict", "--run", "a", "--images", str(folder / "a'; $(touch owned).png"), *at]) == 0
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert not {letter for letter in text if not letter.isprintable()} - {"\n"}
    assert r"\x1b]0;owned\x07\x1b[2J" in shown.out

    page = (hostile / f"storage/reports/{evaluation}/report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert [*tmp_path.rglob("owned"), *hostile.rglob("owned")] == []


def test_a_model_card_shows_hostile_classes_and_names_as_code(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = 'x"); import os; os.system("touch owned") #|`.pt'
    assert (
        run_command(["export", "a", "--to", "state-dict", "--output", output, "--storage", str(hostile / "storage")])
        == 0
    )
    card = (tmp_path / f"{output}.md").read_text()
    assert "\n# Owned" not in card
    # A span of code that the backticks in it don't end.
    assert r"```` `touch owned`\n```\n# Owned ````" in card
    assert "`<script>alert(1)</script>`" in card
    assert "\x1b" not in card
    (code,) = card.split("```python\n")[1:]
    namespace = {"images": torch.zeros(1, 1, 28, 28)}
    exec(code.partition("\n```")[0], namespace)
    assert namespace["logits"].shape == (1, 10)
    (config,) = card.split("```yaml\n")[1:]
    assert yaml.safe_load(config.partition("\n```")[0])["dataset"].endswith("[/x]`|")
    assert not (tmp_path / "owned").exists()


def test_exported_safetensors_hold_hostile_classes_as_data(hostile: Path, tmp_path: Path) -> None:
    command = ["export", "a", "--to", "safetensors", "--output", str(tmp_path), "--storage", str(hostile / "storage")]
    assert run_command(command) == 0
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert sorted(json.loads(file.metadata()["class_names"])) == sorted(CLASSES)


class Payload:
    """What a pickle does when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def test_a_pickle_in_place_of_a_checkpoint_is_not_loaded_even_with_its_right_hash(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, target = open_storage(str(hostile / "storage")), open_storage(str(tmp_path / "storage"))
    for entry in source.list_files("runs/a"):
        target.write_bytes(entry.path, source.read_bytes(entry.path))
    content = pickle.dumps(Payload())
    target.write_bytes("runs/a/best/model.safetensors", content)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        RunFolder(target, "a").best()
    document = json.loads(source.read_bytes("runs/a/best/checkpoint.json"))
    del document["document_sha256"]
    document["files"]["model.safetensors"] = sha256(content).hexdigest()
    target.write_bytes("runs/a/best/checkpoint.json", with_checksum(document))
    with pytest.raises(CheckpointError, match="no safetensors"):
        RunFolder(target, "a").best()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["_manifest.json", "status.json", "grid.json"])
def test_json_that_is_nested_without_end_is_damaged_and_no_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = {"_manifest.json": "evaluations/a", "status.json": "runs/a", "grid.json": "grids/a"}[name]
    open_storage(str(tmp_path)).write_bytes(f"{path}/{name}", b"[" * 1_000_000)
    open_storage(str(tmp_path)).write_bytes("runs/a/config.json", b"[" * 1_000_000)
    commands = {"_manifest.json": ["report", "a"], "status.json": ["runs"], "grid.json": ["grids"]}
    code = run_command([*commands[name], "--storage", str(tmp_path)])
    assert code == (3 if name == "_manifest.json" else 0)
    assert "damaged" in "".join(capsys.readouterr())
