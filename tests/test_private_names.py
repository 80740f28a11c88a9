"""Private names of torch and Ray: each in one file, and there in the versions that are installed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mnist_ray
from mnist_ray import torch_private
from mnist_ray.config.placement import RAY_JOB_VARIABLE
from mnist_ray.optimizers.optimizers import OPTIMIZERS

PACKAGE = Path(mnist_ray.__file__).parent


def dotted(node: ast.AST) -> str:
    """The name a.b.c of an expression that is just that."""
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def private_names(tree: ast.AST) -> set[str]:
    """The private attributes of torch, and the private modules and arguments of Ray, that a file uses."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node).startswith(("torch.", "ray.")):
            found |= {part for part in dotted(node).split(".") if re.match("_[A-Za-z]", part)}
        elif isinstance(node, ast.ImportFrom) and re.match(r"(torch|ray)\b", node.module or ""):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            found |= {part for part in names if part.startswith("_")}
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if re.match(r"(torch|ray)\b", alias.name)]
            found |= {part for name in names for part in name.split(".") if part.startswith("_")}
        elif isinstance(node, ast.Call) and dotted(node.func).startswith(("ray.", "torch.")):
            found |= {str(keyword.arg) for keyword in node.keywords if str(keyword.arg).startswith("_")}
        elif isinstance(node, ast.Constant) and node.value == "node:__internal_head__":
            found.add(node.value)
    return found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch._foreach_add_(steps, 1)", {"_foreach_add_"}),
        ("x = torch.ops.mkldnn._linear_pointwise", {"_linear_pointwise"}),
        ("from torch._C import Graph", {"_C"}),
        ("import ray._private.services", {"_private"}),
        ("from ray import _private", {"_private"}),
        ("ray.init(_temp_dir='x')", {"_temp_dir"}),
        ("resources = {'node:__internal_head__': 1}", {"node:__internal_head__"}),
        ("torch.add(x, self._y); raytracer._z; torch.__version__", set()),
    ],
)
def test_a_private_name_is_found_in_each_way_to_use_it(line: str, expected: set[str]) -> None:
    assert private_names(ast.parse(line)) == expected


def test_private_names_are_used_in_one_file_each() -> None:
    users = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if (names := private_names(ast.parse(path.read_text())))
    }
    assert users == {
        "torch_private.py": {"_fused_adam_", "_fused_adamw_", "_foreach_add_"},
        "cluster/ray_private.py": {"_common", "_private", "_raylet"},
    }


def test_training_and_evaluating_import_neither_torchs_compiler_nor_scikit_learn(tmp_path: Path) -> None:
    train = ["train", "--dataset", "digits", "--train-limit", "100", "--epochs", "1", "--storage", str(tmp_path)]
    commands = [[*train, "--name", name, "--set", f"optimizer={name}"] for name in OPTIMIZERS]
    commands += [[*train, "--name", "adam"], ["evaluate", "--run", "adam", "--storage", str(tmp_path)]]
    code = (
        "import sys\n"
        "from mnist_ray.cli.main import run_command\n"
        f"codes = [run_command(arguments) for arguments in {commands!r}]\n"
        "loaded = {'torch._dynamo', 'torch.fx.experimental.symbolic_shapes', 'sklearn'} & sys.modules.keys()\n"
        "sys.exit(f'{codes} {loaded}' if any(codes) or loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_has_the_names() -> None:
    for name in ("_fused_adam_", "_fused_adamw_", "_foreach_add_"):
        assert callable(getattr(torch, name))
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        assert callable(kind._init_group)
    # Set on a class when its first optimizer is made, and asked for before.
    torch.optim.Rprop([torch.zeros(1)])
    assert torch.optim.Rprop.step.hooked is True
    if torch.backends.mkldnn.is_available():
        assert torch.ops.mkldnn._linear_pointwise is not None
        has_wide_vectors = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        assert (torch_private.linear_pointwise is not None) == has_wide_vectors


def test_ray_has_the_names() -> None:
    # Not imported, which would take seconds: the names are looked up in the installed source.
    folder = next(path for path in map(Path, torch.__path__)).parent / "ray"
    assert "HEAD_NODE_RESOURCE_NAME =" in (folder / "_common/constants.py").read_text()
    assert 'kwargs.pop("_temp_dir"' in (folder / "_private/worker.py").read_text()
    assert "if not ray_constants.ENABLE_RAY_CLUSTER:" in (folder / "_private/services.py").read_text()
    assert "class JobInfoStorageClient" in (folder / "dashboard/modules/job/common.py").read_text()
    asks = (folder / "dashboard/utils.py").read_text()
    assert "from ray._raylet import GcsClient" in asks
    assert "def get_address_for_submission_client(address" in asks
    assert f'{RAY_JOB_VARIABLE} = "{RAY_JOB_VARIABLE}"' in (folder / "_private/runtime_env/constants.py").read_text()
