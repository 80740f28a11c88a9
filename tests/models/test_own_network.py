"""Loading the user's own code and calling its function: what it gets, what runs, and what its errors become."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mnist_ray.config.own_code import giving, use_model
from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.data.image_shape import MNIST_SHAPE, ImageShape
from mnist_ray.errors import CheckpointError, ConfigError, NetworkFailedError, RunFailedError
from mnist_ray.models.memory import bytes_of_run
from mnist_ray.models.networks import make_network, network_of
from mnist_ray.models.own_network import errors_of_code
from tests.support.own_networks import write_nets


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with giving([]):
        yield


def own(model: str, arguments: dict[str, Any] | None = None, **settings: Any) -> TrainConfig:
    return variant_config("baseline", {"model": use_model(model), "model_settings": arguments or {}, **settings})


def code_file(text: str, name: str = "nets.py") -> str:
    write_nets(Path.cwd(), text, name)
    return name


def made(config: TrainConfig, shape: ImageShape = MNIST_SHAPE) -> nn.Module:
    return make_network(config, shape, 10)


def message(config: TrainConfig) -> str:
    with pytest.raises(ConfigError) as raised:
        made(config)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_function_gets_the_images_shape_the_number_of_classes_and_its_settings() -> None:
    name = code_file(
        "def make(image_shape, num_classes, width, names=()):\n"
        "    net = nn.Linear(width, num_classes)\n"
        "    net.got = image_shape, image_shape.channels, names\n"
        "    return net\n"
    )
    network = made(own(f"{name}:make", {"width": 3, "names": ["a", "b"]}), ImageShape(3, 8, 9))
    assert network.got == (ImageShape(3, 8, 9), 3, ["a", "b"])
    assert (network.in_features, network.out_features) == (3, 10)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("float64", torch.float64)])
def test_the_setting_precision_converts_the_weights(precision: str, dtype: torch.dtype) -> None:
    network = made(own(f"{code_file('')}:make_net", precision=precision))
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}


def test_the_initial_weights_depend_on_the_seed_alone_and_the_global_generators_go_on_as_they_were() -> None:
    name = code_file(
        "import random\nimport numpy as np\n\n\n"
        "def make(image_shape, num_classes):\n"
        "    net = Net(image_shape, num_classes)\n"
        "    net.draws = float(torch.rand(1)), random.random(), np.random.rand()\n"
        "    return net\n"
    )
    config = own(f"{name}:make")
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = made(config)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    torch.manual_seed(6)
    random.seed(6)
    np.random.seed(6)
    again = made(config)
    other = made(config.model_copy(update={"seed": 1}))
    assert first.draws == again.draws
    assert all(a != b for a, b in zip(first.draws, other.draws, strict=True))
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(first.conv.weight, other.conv.weight)


def test_lazy_layers_take_their_sizes_from_the_images_and_their_weights_from_the_seed() -> None:
    name = code_file("def lazy(image_shape, num_classes):\n"
                     "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))\n")  # fmt: skip
    config = own(f"{name}:lazy")
    first, again = made(config, ImageShape(3, 4, 5)), made(config, ImageShape(3, 4, 5))
    assert first[1].weight.shape == (10, 60)
    assert torch.equal(first[1].weight, again[1].weight)
    assert first.training


def test_tied_weights_stay_tied_when_a_network_is_restored() -> None:
    name = code_file(
        "class Tied(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.last = nn.Linear(784, 784, bias=False), nn.Linear(784, 784, bias=False)\n"
        "        self.last.weight = self.first.weight\n"
        "        self.fc = nn.Linear(784, 10)\n\n\n"
        "def tied(image_shape, num_classes):\n"
        "    return Tied()\n"
    )
    config = own(f"{name}:tied")
    weights = {key: torch.full_like(value, 0.25) for key, value in made(config).state_dict().items()}
    network = network_of(config, MNIST_SHAPE, 10, weights)
    assert network.last.weight is network.first.weight
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    del weights["last.weight"]
    with pytest.raises(ValueError, match=r"^last\.weight: missing instead of \(784, 784\)$"):
        network_of(config, MNIST_SHAPE, 10, weights)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def make(a, b):\n    return 1 / 0\n", "nets.py:31: ZeroDivisionError: division by zero"),
        ("1 / 0\n", "nets.py:30: ZeroDivisionError: division by zero"),
        ("def make(:\n", "nets.py:30: SyntaxError: invalid syntax"),
        ("import nosuch\n", "nets.py:30: ModuleNotFoundError: No module named 'nosuch'"),
        ("import sys\nsys.exit(0)\n", "nets.py:31: SystemExit: 0"),
        ("raise ValueError('two\\nlines')\n", "nets.py:30: ValueError: two lines"),
        ("def make(a):\n    pass\n", "make(a) must take the shape of the images and the number of classes first"),
        ("def make(a, b):\n    return Net(a, b, 'x')\n", "nets.py:9: TypeError: "),
        ("def make(a, b):\n    return 3\n", "returned int; it must return a torch.nn.Module"),
        ("def mak(a, b):\n    pass\n", "nets.py defines no function make; did you mean mak?"),
        ("from subprocess import run as make\n", "nets.py defines no function make"),
        ("make = 3\n", "nets.py defines no function make"),
    ],
)
def test_an_error_in_the_code_is_one_line_that_says_where(code: str, expected: str) -> None:
    told = message(own(f"{code_file(code)}:make"))
    assert told.startswith(f"model='nets.py:make': {expected}")


def test_an_error_keeps_its_traceback_for_debugging() -> None:
    with pytest.raises(ConfigError) as raised:
        made(own(f"{code_file('def make(a, b):{chr(10)}    return 1 / 0'.replace('{chr(10)}', chr(10)))}:make"))
    assert raised.value.trace is not None
    assert raised.value.trace.startswith("Traceback (most recent call last):")
    assert "    return 1 / 0\n" in raised.value.trace


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"wdth": 3},
            "model_settings.wdth=3: nets.py:make doesn't take it; it takes width, depth; did you mean width?",
        ),
        ({"width": 3, "zzz": 1}, "model_settings.zzz=1: nets.py:make doesn't take it; it takes width, depth"),
        ({"depth": 3}, "model_settings.width: a value is needed; nets.py:make has no default for it"),
    ],
)
def test_settings_that_the_function_does_not_take_are_refused(arguments: dict[str, Any], expected: str) -> None:
    code_file("def make(image_shape, num_classes, width, depth=2):\n    1 / 0\n")
    assert message(own("nets.py:make", arguments)).startswith(expected)


def test_a_function_may_take_any_settings() -> None:
    code_file("def make(image_shape, num_classes, **settings):\n    return nn.Linear(settings['any'], num_classes)\n")
    assert made(own("nets.py:make", {"any": 7})).in_features == 7


def test_what_the_code_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    made(own(f"{code_file('print(1)')}:make_net"))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "1\n")


def test_a_file_may_have_the_name_of_any_module_and_its_edits_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    sizes = []
    for size in (3, 4):
        Path("torch.py").write_text(f"from torch import nn\n\n\ndef make(a, b):\n    return nn.Linear({size}, b)\n")
        sizes.append(made(own("torch.py:make")).in_features)
    assert sizes == [3, 4]
    assert sys.modules["torch"] is torch
    assert not Path("__pycache__").exists()


def folder_of(name: str, size: int, **files: str) -> Path:
    folder = Path(name)
    (folder / "parts").mkdir(parents=True)
    (folder / "parts/sizes.py").write_text(f"SIZE = {size}\n")
    (folder / "layers_of_mine.py").write_text("from parts.sizes import SIZE\n")
    (folder / "nets.py").write_text(
        "from torch import nn\n\n\ndef make(a, b):\n    import layers_of_mine\n\n"
        "    return nn.Linear(layers_of_mine.SIZE, b)\n"
    )
    for file, text in files.items():
        (folder / f"{file}.py").write_text(text)
    return folder


def test_the_modules_of_a_folder_import_each_other_and_not_those_of_another_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    folders = [folder_of(f"version{size}", size) for size in (3, 4)]
    configs = []
    for folder in folders:
        with giving([str(folder)]):
            configs.append(own("nets:make"))
    with giving([str(folder) for folder in folders]):
        # Back and forth: each finds its own again.
        assert [made(configs[number]).in_features for number in (0, 1, 0, 1)] == [3, 4, 3, 4]
    assert not list(Path.cwd().rglob("__pycache__"))


def test_the_modules_of_a_package_import_each_other_by_its_name() -> None:
    folder = Path("my_own_pack")
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "sizes.py").write_text("SIZE = 5\n")
    (folder / "nets.py").write_text(
        "from torch import nn\nfrom .sizes import SIZE\nfrom my_own_pack import sizes\n\n\n"
        "def make(a, b):\n    return nn.Linear(SIZE, sizes.SIZE)\n"
    )
    with giving([str(folder)]):
        assert made(own("my_own_pack.nets:make")).out_features == 5
        assert made(own("nets.py:make")).in_features == 5


def test_a_folder_whose_module_hides_another_is_refused() -> None:
    folder = folder_of("shadows", 3, random="")
    with giving([str(folder)]):
        assert "random is also another module's name" in message(own("nets:make"))


def test_a_module_beside_a_file_is_no_part_of_its_code() -> None:
    folder = folder_of("beside", 3)
    told = message(own(f"{folder}/layers_of_mine.py:make"))
    assert "No module named 'parts'; it lies beside layers_of_mine.py: give the folder, --code " in told


def test_code_that_is_not_given_is_never_run() -> None:
    marker = Path("was-run")
    name = code_file(f"open({str(marker)!r}, 'w').close()\n")
    with giving([]):
        config = own(f"{name}:make_net")
    with pytest.raises(ConfigError, match="its own network nets\\.py:make_net is needed"):
        made(config)
    with giving([name]), pytest.raises(CheckpointError, match="has changed"):
        made(config.model_copy(update={"code_sha256": "0" * 64}))
    assert not marker.exists()
    with giving([name]):
        made(config)
    assert marker.exists()


def test_a_config_can_name_no_function_of_python_or_an_installed_package() -> None:
    for model in ("os:system", "subprocess:run", "json:loads"):
        config = TrainConfig(model=model, code_sha256="0" * 64)
        with pytest.raises(ConfigError, match="is needed; give it with --code"):
            made(config)


def test_an_error_of_the_network_in_training_is_a_failed_run_and_any_other_stays_a_bug() -> None:
    code_file("def make(a, b):\n    return Net(a, b)\n")
    config = own("nets.py:make")
    network = made(config)
    said = r"^model='nets\.py:make': nets\.py:15: RuntimeError: "
    with pytest.raises(NetworkFailedError, match=said) as raised, errors_of_code(config, NetworkFailedError):
        network(torch.zeros(2, 3, 28, 28))
    assert isinstance(raised.value, RunFailedError)
    with pytest.raises(KeyError), errors_of_code(config, NetworkFailedError):
        raise KeyError("ours")
    with pytest.raises(KeyError), errors_of_code(variant_config("baseline"), ConfigError):
        raise KeyError("ours")


def test_the_memory_of_an_own_network_is_estimated() -> None:
    code_file("def make(a, b):\n    return Net(a, b)\n")
    num_weights = sum(parameter.numel() for parameter in made(own("nets.py:make")).parameters())
    estimate = bytes_of_run(own("nets.py:make"), MNIST_SHAPE, num_classes=10, validation_batch=10)
    assert estimate > 4 * 4 * num_weights


def test_a_file_that_imports_what_lies_beside_it_is_refused_even_if_python_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nets(tmp_path, "import a_module_beside\nmake = make_net\n", "beside.py")
    (tmp_path / "a_module_beside.py").write_text("WIDTH = 8\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"imports a_module_beside\.py, which lies beside it: give the folder"):
        make_network(variant_config("baseline", {"model": use_model(f"{tmp_path}/beside.py:make")}), MNIST_SHAPE, 10)
    assert "a_module_beside" not in sys.modules


def test_a_link_in_a_folder_is_no_part_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "nets"
    write_nets(folder, "import linked\nmake = make_net\n", "linking.py")
    (tmp_path / "elsewhere.py").write_text("")
    (folder / "linked.py").symlink_to(tmp_path / "elsewhere.py")
    with giving([str(folder)]), pytest.raises(ConfigError, match="No module named 'linked'"):
        make_network(variant_config("baseline", {"model": use_model("linking.py:make")}), MNIST_SHAPE, 10)
