import io

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.config.own_settings import MODELS
from mnist_ray.config.variants import VARIANTS, variant_config
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.models.networks import BUILDERS, make_network, network_of
from mnist_ray.models.stack import Stack


class BaselineClassifier(nn.Module):
    """As a person writes it after the tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 128)
        self.fc2 = nn.Linear(128, 64)
        self.fc3 = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        values = images.view(-1, 784)
        values = functional.relu(self.fc1(values))
        values = functional.relu(self.fc2(values))
        return self.fc3(values)


class DropoutClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 256)
        self.fc2 = nn.Linear(256, 128)
        self.fc3 = nn.Linear(128, 64)
        self.fc4 = nn.Linear(64, 10)
        self.dropout = nn.Dropout(0.3)

    def forward(self, images: Tensor) -> Tensor:
        values = self.dropout(functional.relu(self.fc1(images.view(-1, 784))))
        values = self.dropout(functional.relu(self.fc2(values)))
        return self.fc4(functional.relu(self.fc3(values)))


class DropoutBatchNormClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 256)
        self.bn1 = nn.BatchNorm1d(256)
        self.fc2 = nn.Linear(256, 128)
        self.bn2 = nn.BatchNorm1d(128)
        self.fc3 = nn.Linear(128, 64)
        self.bn3 = nn.BatchNorm1d(64)
        self.fc4 = nn.Linear(64, 10)
        self.dropout = nn.Dropout(0.3)

    def forward(self, images: Tensor) -> Tensor:
        values = self.dropout(functional.relu(self.bn1(self.fc1(images.view(-1, 784)))))
        values = self.dropout(functional.relu(self.bn2(self.fc2(values))))
        return self.fc4(functional.relu(self.bn3(self.fc3(values))))


class ConvolutionalClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=5, padding=2)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding=2)
        self.bn2 = nn.BatchNorm2d(64)
        self.fc1 = nn.Linear(64 * 7 * 7, 10)
        self.dropout = nn.Dropout(0.3)

    def forward(self, images: Tensor) -> Tensor:
        values = self.dropout(functional.max_pool2d(functional.relu(self.bn1(self.conv1(images))), 2))
        values = self.dropout(functional.max_pool2d(functional.relu(self.bn2(self.conv2(values))), 2))
        return self.fc1(values.flatten(1))


CLASSES = {
    "baseline": BaselineClassifier,
    "dropout": DropoutClassifier,
    "dropout_batchnorm": DropoutBatchNormClassifier,
    "cnn": ConvolutionalClassifier,
}


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def moved_from_its_start(network: nn.Sequential) -> nn.Sequential:
    """Other running statistics and batch-norm weights than those of an untrained network."""
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and name.startswith("bn"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return network


@pytest.mark.parametrize("variant", CLASSES)
def test_a_plain_class_loads_our_weights_and_gives_the_same_logits(variant: str) -> None:
    network = moved_from_its_start(make_network(variant_config(variant), MNIST_SHAPE, 10))
    stack = Stack([network], device=torch.device("cpu"))
    file = io.BytesIO()
    torch.save(stack.state_dict(0), file)
    file.seek(0)
    written_by_hand = CLASSES[variant]()
    written_by_hand.load_state_dict(torch.load(file, weights_only=True), strict=True)
    expected = written_by_hand.eval()(images(32)).detach()
    torch.testing.assert_close(stack.forward(images(32)[None])[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "num_parameters"),
    [
        ("baseline", 109_386),
        ("dropout", 242_762),
        ("dropout_batchnorm", 243_658),
        ("tuned", 243_658),
        ("cnn", 83_658),
        ("resnet", 308_938),
    ],
)
def test_each_variant_has_its_number_of_parameters(variant: str, num_parameters: int) -> None:
    network = make_network(variant_config(variant), MNIST_SHAPE, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters


def test_the_command_line_knows_every_network() -> None:
    assert tuple(BUILDERS) == MODELS


def test_dropout_follows_the_first_two_hidden_layers_and_batch_norm_each() -> None:
    names = [name for name, _ in make_network(variant_config("dropout_batchnorm"), MNIST_SHAPE, 10).named_children()]
    assert " ".join(names) == ("flatten fc1 bn1 relu1 dropout1 fc2 bn2 relu2 dropout2 fc3 bn3 relu3 fc4")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_gives_one_logit_a_class(variant: str) -> None:
    assert make_network(variant_config(variant), MNIST_SHAPE, 26)(images(2)).shape == (2, 26)


def test_initial_weights_have_the_spread_and_shape_of_torch_defaults() -> None:
    ours = make_network(variant_config("baseline"), MNIST_SHAPE, 10).get_submodule("fc1")
    torch.manual_seed(0)
    default = nn.Linear(784, 128)
    for name in ("weight", "bias"):
        values, defaults = (layer.get_parameter(name).detach() for layer in (ours, default))
        assert values.abs().max() <= 1 / 28
        assert stats.ks_2samp(values.flatten().numpy(), defaults.flatten().numpy()).pvalue > 0.001


def test_initial_weights_depend_on_the_seed_and_on_no_global_generator() -> None:
    torch.manual_seed(1)
    first = make_network(variant_config("baseline", {"seed": 3}), MNIST_SHAPE, 10).state_dict()
    torch.manual_seed(2)
    again = make_network(variant_config("baseline", {"seed": 3}), MNIST_SHAPE, 10).state_dict()
    other = make_network(variant_config("baseline", {"seed": 4}), MNIST_SHAPE, 10).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_variants_with_the_same_seed_start_from_the_same_weights() -> None:
    plain = make_network(variant_config("dropout"), MNIST_SHAPE, 10).state_dict()
    normalized = make_network(variant_config("dropout_batchnorm"), MNIST_SHAPE, 10).state_dict()
    for name in ("fc1.weight", "fc2.weight", "fc3.weight", "fc4.weight", "fc4.bias"):
        assert torch.equal(plain[name], normalized[name])


def test_a_bias_that_batch_norm_cancels_is_zero_and_the_last_one_is_not() -> None:
    state = make_network(variant_config("dropout_batchnorm"), MNIST_SHAPE, 10).state_dict()
    assert [float(state[f"fc{number}.bias"].abs().sum()) for number in (1, 2, 3)] == [0.0, 0.0, 0.0]
    assert float(state["fc4.bias"].abs().min()) > 0


def test_float64_networks_start_from_the_numbers_that_float32_ones_round() -> None:
    single = make_network(variant_config("cnn"), MNIST_SHAPE, 10).state_dict()
    double = make_network(variant_config("cnn", {"precision": "float64"}), MNIST_SHAPE, 10).state_dict()
    assert double["conv2.weight"].dtype == torch.float64
    assert torch.equal(double["conv2.weight"].float(), single["conv2.weight"])


def test_a_network_copies_the_weights_that_it_is_given_in_the_precision_of_its_config() -> None:
    config = variant_config("dropout_batchnorm", {"hidden_sizes": (8,)})
    weights = make_network(config, MNIST_SHAPE, 10).double().state_dict()
    copied = network_of(config, MNIST_SHAPE, 10, weights).state_dict()
    assert copied.keys() == weights.keys()
    for name, value in copied.items():
        assert value.dtype == (torch.int64 if "num_batches" in name else torch.float32)
        assert torch.equal(value.double(), weights[name].double())
        value.fill_(7)
        assert not torch.equal(value.double(), weights[name].double())
