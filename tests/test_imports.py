"""Ray only at the edge: what importing the core brings along, seen from fresh processes."""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

import mnist_ray
from tests.support.grid_runs import train_without_ray

ROOT = Path(mnist_ray.__file__).parent.parent
EDGE = ("mnist_ray.cli.main", "mnist_ray.cluster", "mnist_ray.cli.demo")


def core_modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(mnist_ray.__path__, "mnist_ray.")]
    return [name for name in names if not name.startswith(EDGE)]


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


def test_the_config_loads_neither_torch_nor_ray_nor_pyarrow_nor_numpy() -> None:
    imported = imported_with("mnist_ray.config.settings", "mnist_ray.config.variants")
    assert "pydantic" in imported
    assert imported & {"torch", "torchvision", "ray", "pyarrow", "numpy", "PIL", "sklearn", "boto3"} == set()


def test_one_worker_on_this_machine_evaluates_and_predicts_without_ray(tmp_path: Path) -> None:
    train_without_ray(str(tmp_path), "smoke", seeds="1", epochs=1)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.new("L", (28, 28), number).save(images / f"{number}.png")
    commands = [
        ["evaluate", "--grid", "g", "--dataset", "digits", "--storage", str(tmp_path)],
        ["predict", "--run", next(tmp_path.glob("runs/*")).name, "--images", str(images), "--shard-size", "2",
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


def test_only_the_cluster_folder_imports_ray() -> None:
    package = ROOT / "mnist_ray"
    importers = {path.relative_to(package).parts[0] for path in package.rglob("*.py") if "ray" in packages_in(path)}
    assert importers == {"cluster"}


def packages_in(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, inside functions too."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages.add(node.module.partition(".")[0])
    return packages
