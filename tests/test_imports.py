"""Ray only at the edge: what importing the core brings along, and what its commands do, seen from a fresh process."""

import json
import pkgutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import mnist_ray
from tests.support.grid_runs import train_without_ray

ROOT = Path(mnist_ray.__file__).parent.parent
CONFIG = ("mnist_ray.config.settings", "mnist_ray.config.variants")
WITHOUT_TORCH = ("mnist_ray.cli", "mnist_ray.config", "mnist_ray.storage", "mnist_ray.submission")
# Each step adds to what the process has imported, so a step that may load less comes first.
STEPS = """
import importlib, json, sys

steps, commands, result = json.load(sys.stdin), json.loads(sys.argv[1]), sys.argv[2]
loaded = []
for modules in steps:
    for name in modules:
        importlib.import_module(name)
    loaded.append(sorted({name.partition(".")[0] for name in sys.modules}))
from mnist_ray.cli.main import run_command

codes = [run_command(arguments) for arguments in commands]
loaded.append(sorted({name.partition(".")[0] for name in sys.modules}))
with open(result, "w") as file:
    json.dump({"loaded": loaded, "codes": codes}, file)
"""


def core_modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(mnist_ray.__path__, "mnist_ray.")]
    return [name for name in names if not name.startswith("mnist_ray.cluster")]


@dataclass(frozen=True)
class Imported:
    """Top-level packages in sys.modules after each step, and the exit codes of the commands of the last one."""

    by_config: set[str]
    by_command_line: set[str]
    by_core: set[str]
    by_commands: set[str]
    codes: list[int]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    folder = tmp_path_factory.mktemp("imports")
    command_line = [name for name in core_modules() if name.startswith(WITHOUT_TORCH)]
    steps = [CONFIG, ["mnist_ray.results.schemas", *command_line], core_modules()]
    arguments = [json.dumps(commands_without_ray(folder)), str(folder / "result.json")]
    done = subprocess.run(
        [sys.executable, "-c", STEPS, *arguments], cwd=ROOT, input=json.dumps(steps), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    return Imported(*map(set, result["loaded"]), result["codes"])


def commands_without_ray(folder: Path) -> list[list[str]]:
    """Returns commands for one worker here, and one for a grid that this function has trained."""
    train_without_ray(str(folder), "smoke", seeds="1", epochs=1)
    images = folder / "images"
    images.mkdir()
    for number in range(3):
        Image.new("L", (28, 28), number).save(images / f"{number}.png")
    run = next(folder.glob("runs/g-*")).name
    commands = [
        ["train", "--dataset", "digits", "--epochs", "1", "--hidden-sizes", "8", "--name", "a"],
        ["tune", "--grid", "smoke", "--name", "g", "--seeds", "1", "--epochs", "1"],
        ["evaluate", "--grid", "g", "--dataset", "digits", "--no-report"],
        # Few charts to draw.
        ["evaluate", "--run", "a", "--dataset", "digits"],
        ["predict", "--run", run, "--images", str(images), "--shard-size", "2"],
    ]
    return [[*command, "--storage", str(folder)] for command in commands]


def test_the_config_loads_neither_torch_nor_ray_nor_pyarrow_nor_numpy(imported: Imported) -> None:
    assert "pydantic" in imported.by_config
    heavy = {"torch", "torchvision", "ray", "pyarrow", "numpy", "PIL", "sklearn", "boto3"}
    assert imported.by_config & heavy == set()


def test_what_reads_a_command_line_and_describes_storages_and_tables_loads_no_torch(imported: Imported) -> None:
    assert "click" in imported.by_command_line
    assert imported.by_command_line & {"torch", "ray"} == set()


def test_the_core_loads_no_ray(imported: Imported) -> None:
    assert {"mnist_ray.training.loop", "mnist_ray.models.stack_layers", "mnist_ray.data.idx"} <= set(core_modules())
    assert "torch" in imported.by_core
    assert "ray" not in imported.by_core


def test_one_worker_here_and_a_grid_without_missing_runs_need_no_ray(imported: Imported) -> None:
    assert imported.codes == [0] * 5
    assert "ray" not in imported.by_commands
