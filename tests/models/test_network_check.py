"""What is wrong with a user's own network is said before a run begins."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_ray.config.own_code import giving, use_model
from mnist_ray.config.variants import variant_config
from mnist_ray.data.image_shape import ImageShape
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import ConfigError
from mnist_ray.models.network_check import check_networks
from mnist_ray.training.data import prepare_data
from tests.support.own_networks import write_nets
from tests.support.tiny_digits import tiny_digits


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with giving([]):
        yield


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return prepare_data(variant_config("baseline"), tiny_digits(100), device=torch.device("cpu"))


def checked(data: TrainingData, code: str, *, num_workers: int = 1, **settings: Any) -> list[str]:
    write_nets(Path.cwd(), code, "nets.py")
    config = variant_config("baseline", {"model": use_model("nets.py:make"), **settings})
    return check_networks([config], data, num_workers=num_workers)


def net(forward: str, more: str = "pass") -> str:
    """Code of a network of one linear layer, with a forward of its own."""
    return (
        "class Own(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(784, num_classes)\n"
        f"        {more}\n\n"
        "    def forward(self, x):\n"
        f"        {forward}\n\n\n"
        "def make(image_shape, num_classes):\n"
        "    return Own(num_classes)\n"
    )


LOGITS = "return self.fc(x.flatten(1))"


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
@pytest.mark.parametrize(
    "code",
    [
        "make = make_net\n",
        "make = mlp\n",
        net(LOGITS, "self.fc.bias.requires_grad_(False)"),
        # Stochastic depth: some parameters have no gradient in some steps.
        net(
            "y = x.flatten(1)\n"
            "        y = y + self.deep(y) if self.training and torch.rand(1) < 0.2 or not self.training else y\n"
            "        return self.fc(y)",
            "self.deep = nn.Linear(784, 784)",
        ),
        net("return self.fc(self.drop(x.flatten(1)))", "self.drop = nn.AlphaDropout(0.5)"),
        net("return self.fc(self.part(x.flatten(1)))", "self.part = torch.jit.script(nn.ReLU())"),
    ],
    ids=["net", "mlp", "frozen", "stochastic depth", "alpha dropout", "a scripted part"],
)
# torch recommends other ways to compile, but networks with scripted parts are there.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:FutureWarning")
def test_a_network_that_can_be_trained_passes(data: TrainingData, code: str, precision: str) -> None:
    checked(data, code, precision=precision)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "def make(a, b):\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, b + 1))\n",
            "forward returned (4, 11) for images (4, 1, 28, 28); it must return logits (4, 10), one per image and",
        ),
        (net("return x"), "forward returned (4, 1, 28, 28) for images (4, 1, 28, 28); it must return logits (4, 10)"),
        (net("return self.fc(x.flatten(1)).squeeze()"), "forward returned (10,) for images (1, 1, 28, 28); it must"),
        (net("return self.fc(x.flatten(1)), x"), "forward returned tuple; it must return the logits, a tensor"),
        (net("return self.fc(x.flatten(1)).double()"), "forward returned float64 for images of float32; return the"),
        (net("return self.fc(x.flatten(1)) / 0"), "forward returned values that are not finite"),
        (net("return self.fc(x.flatten(1)).detach()"), "the logits have no gradient: forward detaches them"),
        (
            net(LOGITS, "self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)"),
            "never get a gradient, as forward doesn't use them or detaches them: a.weight, a.bias, b.weight and 1",
        ),
        ("def make(a, b):\n    return nn.Flatten()\n", "has no parameters; there is nothing to train"),
        (
            "def make(a, b):\n    return Net(a, b).requires_grad_(False)\n",
            "all its parameters are frozen (requires_grad=False); there is nothing to train",
        ),
        ("def make(a, b):\n    return Net(a, b).double()\n", "conv.weight is float64; make it float32: the setting"),
        (net(LOGITS, "self.n = nn.Parameter(torch.ones(2) * 1j)"), "n is complex64; make it float32"),
        (
            net(LOGITS, "self.n = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)"),
            "n is int64; make it float32",
        ),
        ("def make(a, b):\n    return Net(a, b).to('meta')\n", "conv.weight is on meta; leave the device to mnist-ray"),
        (net("return self.fc(x.flatten(1)) + torch.rand(1)"), "gives other outputs for the same images, in evaluation"),
        (
            net("return self.fc(self.n(x.flatten(1)))", "self.n = nn.BatchNorm1d(784, track_running_stats=False)"),
            "an image's output depends on the other images of its batch, in evaluation mode",
        ),
        (
            net("self.fc.weight.data = self.fc.weight.data.clamp(-0.01, 0.01); return self.fc(x.flatten(1))"),
            "forward puts another tensor into fc.weight.data; change it in place, with copy_",
        ),
        (
            net(LOGITS, "pass\n\n    def get_extra_state(self):\n        return {'a': 1}"),
            "its state_dict holds _extra_state, a dict; only tensors can be saved",
        ),
        (net("return self.fc(x)"), "nets.py:37: RuntimeError: mat1 and mat2 shapes"),
        (net("return self.fc(x.flatten(1)) if not self.training else 1 / 0"), "nets.py:37: ZeroDivisionError: "),
        (
            "def make(a, b):\n    return nn.Sequential(nn.Flatten(), nn.Sequential(nn.ReLU(), nn.Linear(6, 9)))\n",
            "RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x784 and 6x9); in layer 1.1 (Linear), given",
        ),
        (
            "def make():\n    return Net(1, 2)\n",
            "make() must take the shape of the images and the number of classes first",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(data: TrainingData, code: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        checked(data, code)
    assert str(raised.value).startswith(f"model='nets.py:make': {expected}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("code", "draws"),
    [
        ("make = make_net\n", False),
        (net("return self.fc(self.drop(x.flatten(1)))", "self.drop = nn.Dropout1d(0.5)"), False),
        (net("return self.fc(nn.functional.dropout(x.flatten(1), 0.5, self.training))"), True),
        # The batch is not the first dimension.
        (
            net("return self.fc(self.drop(x.flatten(1).T).T)", "self.drop = nn.Dropout(0.5)"),
            False,
        ),
        (
            net(
                "return self.fc(self.drop(x.flatten(1)[:, :13].T).T)",
                "self.drop, self.fc = nn.Dropout(0.5), nn.Linear(13, num_classes)",
            ),
            True,
        ),
        (net("import random; return self.fc(x.flatten(1)) * (random.random() if self.training else 1)"), True),
        (net("import numpy; return self.fc(x.flatten(1)) * (numpy.random.rand() if self.training else 1)"), True),
    ],
)
def test_draws_besides_dropout_are_noticed(data: TrainingData, code: str, draws: bool) -> None:
    line = "network nets.py:make: draws random numbers besides dropout, so its results depend on the number of workers"
    assert checked(data, code, num_workers=2) == [line] * draws
    assert checked(data, code) == []


def test_a_check_leaves_the_global_generators_as_they_were(data: TrainingData) -> None:
    torch.manual_seed(123)
    random.seed(123)
    np.random.seed(123)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    checked(data, net("return self.fc(nn.functional.dropout(x.flatten(1), 0.5, self.training))"))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_a_network_is_checked_on_images_of_the_datas_shape(data: TrainingData) -> None:
    shape = ImageShape(1, 14, 28)
    half = TrainingData(**{**vars(data), "images": data.images[:, :, :14]})
    assert half.image_shape == shape
    with pytest.raises(ConfigError, match="mat1 and mat2"):
        checked(half, net(LOGITS))
    checked(half, "make = make_net\n")


def test_networks_of_equal_settings_are_checked_once(data: TrainingData, capsys: pytest.CaptureFixture[str]) -> None:
    write_nets(Path.cwd(), "def make(a, b, width=8):\n    print('made')\n    return Net(a, b, width)\n", "nets.py")
    model = use_model("nets.py:make")
    configs = [
        variant_config("baseline", {"model": model, "seed": seed, "model_settings.width": width, "epochs": epochs})
        for seed in (0, 1)
        for width in (4, 8)
        for epochs in (1, 2)
    ]
    check_networks([*configs, variant_config("cnn")], data)
    assert capsys.readouterr().err.count("made") == 2


def test_a_batch_of_one_row_needs_a_network_without_batch_norm(data: TrainingData) -> None:
    norm = net("return self.fc(self.norm(x.flatten(1)))", "self.norm = nn.BatchNorm1d(784)")
    with pytest.raises(ConfigError, match="Expected more than 1 value per channel when training"):
        checked(data, norm, global_batch_size=1)
    assert checked(data, "make = mlp\n", global_batch_size=1) == []


def test_a_network_that_cannot_compute_no_rows_is_refused_where_a_worker_may_have_none(data: TrainingData) -> None:
    code = net("return self.fc(x.view(x.size(0), -1))")
    # 90 images: the last batch has 2 rows.
    settings = {"global_batch_size": 8}
    assert checked(data, code, num_workers=2, **settings) == []
    with pytest.raises(ConfigError, match="a worker may have no images of an epoch's last batch, and forward can't"):
        checked(data, code, num_workers=3, **settings)
    assert checked(data, net(LOGITS), num_workers=3, **settings) == []
