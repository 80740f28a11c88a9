"""Evaluating without Ray: what the plan refuses, and what the tables say."""

import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mnist_ray.cli.main import run_command
from mnist_ray.config.settings import EvaluationConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.data.datasets import stream_examples
from mnist_ray.data.examples import ExampleStream
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.errors import CheckpointError, DataError
from mnist_ray.evaluation.gallery import gallery
from mnist_ray.evaluation.plan import check_checkpoints, make_plan, manifest, request_hash
from mnist_ray.evaluation.shards import ShardEvaluator, ShardStream, gather
from mnist_ray.evaluation.tables import write_tables
from mnist_ray.models.networks import make_network
from mnist_ray.results import parquet
from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import prepare_data
from mnist_ray.training.loop import fit
from tests.support.warm_processes import call, peak_memory

CPU = torch.device("cpu")
SHA256 = "0" * 64


@pytest.fixture(scope="module")
def examples() -> ExampleStream:
    return stream_examples("digits", "test", data_dir=Path("unused"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, examples: ExampleStream) -> Checkpoint:
    config = variant_config("dropout_batchnorm", {"dataset": "digits", "epochs": 1})
    data = prepare_data(config, examples.load(), device=CPU)
    folder = RunFolder(open_storage(str(tmp_path_factory.mktemp("storage"))), "a")
    folder.claim(config, data)
    for state in fit(config, data, device=CPU):
        folder.save(config, data, state)
    folder.finish(config)
    return folder.best()


def test_a_checkpoint_of_another_architecture_is_refused(checkpoint: Checkpoint, examples: ExampleStream) -> None:
    other = replace(checkpoint, model=make_network(variant_config("baseline"), MNIST_SHAPE, 10).state_dict())
    with pytest.raises(CheckpointError, match="run 'a': weights of another architecture than its config"):
        check_checkpoints(EvaluationConfig(dataset="digits"), [other], examples)


def test_a_checkpoint_of_other_classes_is_refused(checkpoint: Checkpoint, examples: ExampleStream) -> None:
    letters = replace(examples, class_names=tuple("abcdefghij"))
    with pytest.raises(
        CheckpointError, match=r"run 'a': trained on 10 classes \(0, 1, 2, 3, \.\.\.\), dataset='digits'"
    ):
        check_checkpoints(EvaluationConfig(dataset="digits"), [checkpoint], letters)


def test_the_name_depends_on_all_that_is_asked(
    checkpoint: Checkpoint, examples: ExampleStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hash_of(checkpoint: Checkpoint = checkpoint, code: str = "1", **config: Any) -> str:
        return request_hash(EvaluationConfig(**{"dataset": "digits", **config}), [checkpoint], code)

    own = {"dataset": "folder:/photos"}
    asked = [
        hash_of(),
        hash_of(shard_size=7),
        hash_of(split="train"),
        hash_of(code="2"),
        hash_of(replace(checkpoint, run="b")),
        hash_of(**own),
    ]
    assert len({*asked}) == len(asked)
    # The same place, written in other ways.
    monkeypatch.chdir("/")
    assert {hash_of(dataset=f"folder:{place}") for place in ("photos", "/photos/", "file:///photos")} == {asked[-1]}
    config = EvaluationConfig(**own)
    assert make_plan(config, [checkpoint], examples, name="mine").name == "mine"
    code = make_plan(config, [checkpoint], examples).code_version
    short = hash_of(code=code, **own)[:8]
    assert make_plan(config, [checkpoint], examples).name == f"{checkpoint.run}-on-photos-test-{short}"
    # A list has room for it.
    config = EvaluationConfig(dataset=f"folder:/{'long-' * 9}", split="train", grid="g" * 32)
    name = make_plan(config, [checkpoint], examples).name
    assert re.fullmatch("g{26}-on-long-long-long-long-long-train-[0-9a-f]{8}", name)
    assert len(name) == 69


def test_metrics_of_many_shards_equal_those_of_plain_torch(
    checkpoint: Checkpoint, examples: ExampleStream, tmp_path: Path
) -> None:
    config = EvaluationConfig(dataset="digits", shard_size=100)
    # The same network with other data's mean and deviation: each run has its own.
    elsewhere = {**checkpoint.document, "normalization": {"mean": 0.4, "std": 0.2}}
    both = [checkpoint, replace(checkpoint, run="b", document=elsewhere)]
    plan = replace(make_plan(config, both, examples), fingerprints=(SHA256,))
    storage = open_storage(str(tmp_path))
    pending = storage.pending_folder("evaluations/x")
    evaluator = ShardEvaluator(plan, device=CPU)
    results = [evaluator.evaluate(shard, pending) for shard in ShardStream([examples], plan)]
    files = write_tables(plan, results, pending)
    assert pending.commit(files, manifest(plan, len(examples)))
    rows = parquet.read_parquet(storage.read_committed("evaluations/x", "metrics/part-0.parquet")).to_pylist()

    network = make_network(checkpoint.config, MNIST_SHAPE, 10)
    network.load_state_dict(checkpoint.model)
    network.eval()
    assert [row["run"] for row in rows] == ["a", "b"]
    for row, (mean, std) in zip(rows, [each.normalization for each in both], strict=True):
        with torch.no_grad():
            logits = network((examples.load().images / 255 - mean) / std)
        assert row["num_examples"] == 355
        assert row["accuracy"] == pytest.approx((logits.argmax(1) == examples.labels).float().mean().item())
        expected = torch.nn.functional.cross_entropy(logits, examples.labels).item()
        assert row["log_loss"] == pytest.approx(expected, rel=1e-5)
        assert row["variant"] == "dropout_batchnorm"
        assert row["train_dataset"] == "digits"
    assert rows[0]["log_loss"] != pytest.approx(rows[1]["log_loss"], rel=1e-2)


def test_shards_have_every_example_once_in_order_however_the_images_arrive(
    checkpoint: Checkpoint, examples: ExampleStream
) -> None:
    whole = examples.load()
    config = EvaluationConfig(dataset="digits", shard_size=100)
    plan = make_plan(config, [checkpoint], examples)
    for sizes in ([355], [1] * 355, [99, 1, 155, 100], [250, 105]):
        pieces = replace(examples, read=lambda sizes=sizes: Pieces(whole.images.split(sizes)))
        shards = list(ShardStream([pieces], plan))
        assert [len(shard.labels) for shard in shards] == [100, 100, 100, 55]
        assert [shard.first for shard in shards] == [0, 100, 200, 300]
        assert torch.equal(torch.cat([shard.images[0] for shard in shards]), whole.images)
        assert torch.equal(torch.cat([shard.labels for shard in shards]), whole.labels)


def test_the_fingerprint_is_that_of_the_very_images_that_were_evaluated(
    checkpoint: Checkpoint, examples: ExampleStream
) -> None:
    images = examples.load().images
    plan = make_plan(EvaluationConfig(dataset="digits", shard_size=100), [checkpoint], examples)
    for read in (examples.read, lambda: Pieces((images.flip(0),))):
        shards = ShardStream([replace(examples, read=read)], plan)
        list(shards)
        assert shards.fingerprints == (replace(examples, read=read).scan()[0],)
    fewer = replace(examples, read=lambda: Pieces((images[1:],)))
    with pytest.raises(DataError, match="has 354 images but 355 labels"):
        list(ShardStream([fewer], plan))


def test_an_evaluation_reads_its_images_once_and_the_same_again_only_to_know_them(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reads: list[str] = []

    def counted(*arguments: Any, **options: Any) -> ExampleStream:
        stream = stream_examples(*arguments, **options)
        return replace(stream, read=lambda: reads.append(stream.source) or stream.read())

    monkeypatch.setattr("mnist_ray.jobs.evaluate.stream_examples", counted)
    monkeypatch.setattr("mnist_ray.jobs.evaluate.RunFolder.best", lambda _: checkpoint)
    command = ["evaluate", "--run", "a", "--dataset", "digits", "--no-report", "--storage", str(tmp_path)]
    assert run_command(command) == 0
    assert len(reads) == 1
    (committed,) = (tmp_path / "evaluations").iterdir()
    assert f"evaluation {committed.name} committed" in capsys.readouterr().out
    assert run_command(command) == 0
    assert len(reads) == 2
    assert f"evaluation {committed.name} was there already" in capsys.readouterr().out
    # Nothing of this name is there: no need to know the images first.
    assert run_command([*command, "--split", "train"]) == 0
    assert len(reads) == 3


def test_only_the_images_of_the_gallery_are_kept_however_many_shards_there_are(
    checkpoint: Checkpoint, examples: ExampleStream, tmp_path: Path
) -> None:
    plan = make_plan(EvaluationConfig(dataset="digits", shard_size=10), [checkpoint], examples)
    pending = open_storage(str(tmp_path)).pending_folder("evaluations/x")
    evaluator = ShardEvaluator(plan, device=CPU)
    results = [evaluator.evaluate(shard, pending) for shard in ShardStream([examples], plan)]
    all_images = [image for result in results for image in result.images]
    gathered = gather(reversed(results))
    kept = [image for result in gathered for image in result.images]
    assert len(kept) < len(all_images)
    assert kept == gallery(all_images)
    assert [result.number for result in gathered] == list(reversed(range(len(results))))


@dataclass(frozen=True)
class Pieces:
    images: tuple[torch.Tensor, ...]
    conversion = None

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.images)


def peak_of_a_command(*arguments: str) -> int:
    """Runs a command; returns the greatest size of this process in bytes."""
    assert run_command(arguments) == 0
    return peak_memory()


def write_parquet(folder: Path, split: str, count: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 784), dtype=np.uint8)
    images = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 784)
    folder.mkdir(exist_ok=True)
    # One row group, which is what is read at once unless one takes care.
    table = pa.table({"image": images, "label": np.arange(count) % 10})
    pq.write_table(table, folder / f"{split}.parquet", use_dictionary=False)


def test_the_memory_of_an_evaluation_does_not_grow_with_the_images(tmp_path: Path) -> None:
    storage = ["--storage", str(tmp_path / "results")]
    peaks = {}
    for count in (10_000, 100_000):
        folder = tmp_path / str(count)
        write_parquet(folder, "train", 1000)
        write_parquet(folder, "test", count)
        if not peaks:
            train = ["train", "--dataset", f"parquet:{folder}", "--epochs", "1", "--name", "a"]
            assert run_command([*train, *storage]) == 0
        evaluate = ["evaluate", "--run", "a", "--dataset", f"parquet:{folder}", "--shard-size", "2000", "--no-report"]
        peaks[count] = call(peak_of_a_command, *evaluate, *storage)
    # 90,000 more images are 71 MB of pixels; their labels are 0.7 MB.
    assert peaks[100_000] - peaks[10_000] < 35e6, peaks


def test_a_shard_is_sent_without_the_labels_of_the_others(checkpoint: Checkpoint, examples: ExampleStream) -> None:
    plan = make_plan(EvaluationConfig(dataset="digits", shard_size=10), [checkpoint], examples)
    shard = next(iter(ShardStream([examples], plan)))
    assert len(pickle.dumps(shard.labels)) < 1000
