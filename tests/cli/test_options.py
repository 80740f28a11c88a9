"""What a job is asked is what its command was asked: nothing is listed twice, so nothing can be forgotten."""

from typing import Any

import click
import pytest

from mnist_ray.cli.main import cli
from mnist_ray.cli.submission import forwarded
from mnist_ray.data.datasets import DATASETS

LAUNCHER_ALONE = {"address", "no_wait", "pip", "as_json"}
COMMANDS = {
    "train": ["--num-workers", "3:5", "--no-resume", "--max-failures", "0", "--log", "mlflow", "--log", "tensorboard",
              "--set", "dropout=0.3", "--set", "epochs=2", "--no-batch-norm", "--config", "a b.yaml"],
    "tune": ["--grid", "smoke", "--seeds", "0,3", "--scheduler", "asha", "--asha-factor", "3", "--search", "optuna",
             "--num-samples", "9", "--gpus-per-stack", "0.5", "--workers-per-run", "2", "--until-settled",
             "--looks", "3,5", "--margin", "1.5", "--budget", "20m"],
    "evaluate": ["--run", "a", "--run", "b", "--split", "train", "--batch-size", "7", "--no-report"],
    "predict": ["--run", "a", "--images", "x y/é", "--polarity", "as-trained", "--strict", "--name", "p"],
}  # fmt: skip
CLUSTER = ["--no-use-gpu", "--resource-timeout", "0.25", "--shared-storage"]


def parsed(name: str, arguments: list[str]) -> click.Context:
    return cli.commands[name].make_context(name, list(arguments), obj={})


def asked(context: click.Context) -> dict[str, Any]:
    return {name: value for name, value in context.params.items() if name not in LAUNCHER_ALONE}


@pytest.mark.parametrize("more", [[], [*CLUSTER, "--address", "http://127.0.0.1:1", "--no-wait", "--pip", "--json"]])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_job_is_asked_all_that_its_command_was(name: str, more: list[str]) -> None:
    context = parsed(name, COMMANDS[name] + more)
    line = forwarded(context, {})
    assert asked(parsed(name, line)) == asked(context)
    assert not {"--address", "--no-wait", "--pip", "--json"} & {*line}


def test_a_value_is_replaced_or_left_out_by_the_name_of_its_parameter() -> None:
    context = parsed("predict", ["--run", "a", "--images", "here", "--strict", "--name", "p"])
    line = forwarded(context, {"images": "s3://b/there", "name": None, "strict": False})
    assert line[:4] == ["--run", "a", "--images", "s3://b/there"]
    assert not {"--strict", "--name"} & {*line}


@pytest.mark.parametrize("name", ["train", "tune"])
def test_the_help_names_every_data_set(name: str) -> None:
    (option,) = (option for option in cli.commands[name].params if option.name == "dataset")
    assert isinstance(option, click.Option)
    assert str(option.help).split(", or your own")[0].split(", ") == list(DATASETS)
