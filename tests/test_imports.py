"""Ray only at the edge: what importing the core brings along, seen from fresh processes."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

import mnist_ray
from tests.support.grid_runs import train_without_ray

ROOT = Path(mnist_ray.__file__).parent.parent


def core_modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(mnist_ray.__path__, "mnist_ray.")]
    return [name for name in names if not name.startswith("mnist_ray.cluster")]


def imported_with(*modules: str) -> set[str]:
    """Top-level packages in sys.modules after the imports, in a process of its own."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {list(modules)!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(process.stdout))


def test_the_core_loads_no_ray() -> None:
    modules = core_modules()
    assert {"mnist_ray.training.loop", "mnist_ray.models.stack_layers", "mnist_ray.data.idx"} <= set(modules)
    imported = imported_with(*modules)
    assert "torch" in imported
    assert "ray" not in imported


def test_what_reads_a_command_line_and_describes_storages_and_tables_loads_no_torch() -> None:
    rooms = ("mnist_ray.cli", "mnist_ray.config", "mnist_ray.storage", "mnist_ray.submission")
    modules = [name for name in core_modules() if name.startswith(rooms)]
    assert imported_with("mnist_ray.results.schemas", *modules) & {"torch", "ray"} == set()


def test_the_config_loads_neither_torch_nor_ray_nor_pyarrow_nor_numpy() -> None:
    imported = imported_with("mnist_ray.config.settings", "mnist_ray.config.variants")
    assert "pydantic" in imported
    assert imported & {"torch", "torchvision", "ray", "pyarrow", "numpy", "PIL", "sklearn", "boto3"} == set()


def test_one_worker_here_and_a_grid_without_missing_runs_need_no_ray(
    tmp_path: Path,
) -> None:
    train_without_ray(str(tmp_path), "smoke", seeds="1", epochs=1)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.new("L", (28, 28), number).save(images / f"{number}.png")
    commands = [
        ["train", "--dataset", "digits", "--epochs", "1", "--hidden-sizes", "8", "--storage", str(tmp_path)],
        ["tune", "--grid", "smoke", "--name", "g", "--seeds", "1", "--epochs", "1", "--storage", str(tmp_path)],
        ["evaluate", "--grid", "g", "--dataset", "digits", "--storage", str(tmp_path)],
        ["predict", "--run", next(tmp_path.glob("runs/g-*")).name, "--images", str(images), "--shard-size", "2",
         "--storage", str(tmp_path)],
    ]  # fmt: skip
    code = (
        "import sys\n"
        "from mnist_ray.cli.main import run_command\n"
        f"codes = [run_command(arguments) for arguments in {commands!r}]\n"
        "sys.exit(f'{codes} with Ray' if any(codes) or 'ray' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
