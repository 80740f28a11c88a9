"""The statistics that batch norm stores, against a measurement of their own with plain PyTorch."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.data.datasets import load_examples
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import DataError
from mnist_ray.models.networks import make_network
from mnist_ray.training.data import normalize, prepare_data
from mnist_ray.training.loop import fit
from tests.support.tiny_digits import tiny_digits

CPU = torch.device("cpu")
NUM_MEASURED = 5000


def trained(config: TrainConfig, data: TrainingData) -> nn.Sequential:
    *_, last = fit(config, data, device=CPU)
    network = make_network(config, MNIST_SHAPE, len(data.class_names))
    network.load_state_dict(last.model)
    return network


def log_loss(network: nn.Module, data: TrainingData) -> float:
    images = normalize(data.validation_images, mean=data.mean, std=data.std, dtype=torch.float32)
    with torch.no_grad():
        return float(functional.cross_entropy(network.eval()(images), data.validation_labels))


def measure_statistics(network: nn.Module, data: TrainingData) -> None:
    """Replaces the running statistics by those of training images, dropout included, in one large batch."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.reset_running_stats()
            layer.momentum = None
    torch.manual_seed(0)
    with torch.no_grad():
        network.train()(normalize(data.images[:NUM_MEASURED], mean=data.mean, std=data.std, dtype=torch.float32))


def mean_log_variance(network: nn.Module) -> float:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm1d)]
    return float(torch.cat([layer.running_var.log() for layer in layers]).mean())


# 54,001 training images: each of these sizes leaves one for a last batch, which would take a tenth off each variance.
# What is left is noise of a moving average: the losses of five seeds of batch 250 lie 1 % low to 6 % high, depending on
# the CPU's rounding, too, and a last image in a batch of its own makes them 19 to 29 %. After the 162 steps of batch
# 1000 the average lags behind the weights.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "largest_difference"),
    [
        (1000, 0.06),
        pytest.param(100, 0.02, marks=pytest.mark.series),
        pytest.param(250, 0.12, marks=pytest.mark.series),
    ],
)
def test_a_single_last_image_does_not_spoil_the_stored_statistics(
    size: int, largest_difference: float, mnist_dir: Path
) -> None:
    config = variant_config("dropout_batchnorm", {"dataset": "mnist", "epochs": 3, "global_batch_size": size})
    data = prepare_data(config, load_examples("mnist", "train", data_dir=mnist_dir), device=CPU)
    assert len(data.labels) % size == 1
    network = trained(config, data)
    stored_loss, stored_variance = log_loss(network, data), mean_log_variance(network)
    measure_statistics(network, data)
    assert stored_loss == pytest.approx(log_loss(network, data), rel=largest_difference)
    assert abs(stored_variance - mean_log_variance(network)) < 0.03


def test_batch_norm_refuses_a_single_training_example() -> None:
    config = variant_config("dropout_batchnorm", {"dataset": "digits"})
    data = prepare_data(config, tiny_digits(100), device=CPU)
    single = TrainingData(**{**vars(data), "images": data.images[:1], "labels": data.labels[:1]})
    with pytest.raises(DataError, match="a single training example has no variance"):
        next(fit(config, single, device=CPU))
