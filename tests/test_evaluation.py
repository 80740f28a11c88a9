"""Evaluating without Ray: what the plan refuses, and what the tables say."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mnist_ray import tables
from mnist_ray.checkpoints import Checkpoint, RunFolder
from mnist_ray.config import EvaluationConfig
from mnist_ray.data import Examples, load_examples
from mnist_ray.errors import CheckpointError
from mnist_ray.evaluation import cut_into_shards, evaluate_shard, make_plan, manifest, write_tables
from mnist_ray.models.networks import make_network
from mnist_ray.storage import open_storage
from mnist_ray.training import fit
from mnist_ray.training_data import prepare_data
from mnist_ray.variants import variant_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples() -> Examples:
    return load_examples("digits", "test", data_dir=Path("unused"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, examples: Examples) -> Checkpoint:
    config = variant_config("dropout_batchnorm", {"dataset": "digits", "epochs": 1})
    data = prepare_data(config, examples, device=CPU)
    folder = RunFolder(open_storage(str(tmp_path_factory.mktemp("storage"))), "a")
    folder.claim(config, data, resume=False)
    for state in fit(config, data, device=CPU):
        folder.save(config, data, state)
    folder.finish()
    return folder.best()


def test_a_checkpoint_of_another_architecture_is_refused(checkpoint: Checkpoint, examples: Examples) -> None:
    other = replace(checkpoint, model=make_network(variant_config("baseline"), 10).state_dict())
    with pytest.raises(CheckpointError, match="run 'a': weights of another architecture than its config"):
        make_plan(EvaluationConfig(dataset="digits"), [other], examples)


def test_a_checkpoint_of_other_classes_is_refused(checkpoint: Checkpoint, examples: Examples) -> None:
    letters = replace(examples, class_names=tuple("abcdefghij"))
    with pytest.raises(
        CheckpointError, match=r"run 'a': trained on 10 classes \(0, 1, 2, 3, \.\.\.\), dataset='digits'"
    ):
        make_plan(EvaluationConfig(dataset="digits"), [checkpoint], letters)


def test_the_plans_name_depends_on_all_that_the_result_depends_on(checkpoint: Checkpoint, examples: Examples) -> None:
    plan = make_plan(EvaluationConfig(dataset="digits"), [checkpoint], examples)
    changed = [
        replace(plan, config=EvaluationConfig(dataset="digits", shard_size=7)),
        replace(plan, data_sha256="0" * 64),
        replace(plan, code_version="0.0.0"),
        replace(plan, checkpoints=(replace(checkpoint, run="b"),)),
    ]
    assert len({plan.name, *(other.name for other in changed)}) == 5


def test_metrics_of_many_shards_equal_those_of_plain_torch(
    checkpoint: Checkpoint, examples: Examples, tmp_path: Path
) -> None:
    plan = make_plan(EvaluationConfig(dataset="digits", shard_size=100), [checkpoint], examples)
    storage = open_storage(str(tmp_path))
    pending = storage.pending_folder("evaluations/x")
    results = [evaluate_shard(plan, shard, pending, device=CPU) for shard in cut_into_shards(examples, 100)]
    files = write_tables(plan, list(reversed(results)), pending)
    assert pending.commit(files, manifest(plan, len(examples)))
    (row,) = tables.read_parquet(storage.read_committed("evaluations/x", "metrics.parquet")).to_pylist()

    network = make_network(checkpoint.config, 10)
    network.load_state_dict(checkpoint.model)
    network.eval()
    normalization = checkpoint.document["normalization"]
    with torch.no_grad():
        logits = network((examples.images / 255 - normalization["mean"]) / normalization["std"])
    assert row["num_examples"] == 355
    assert row["accuracy"] == pytest.approx((logits.argmax(1) == examples.labels).float().mean().item())
    expected = torch.nn.functional.cross_entropy(logits, examples.labels).item()
    assert row["log_loss"] == pytest.approx(expected, rel=1e-5)
    assert row["variant"] == "dropout_batchnorm"
    assert row["train_dataset"] == "digits"
