"""The version of the code that made a result."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path

import mnist_ray


@cache
def code_version() -> str:
    """Returns the package's version and a hash of its source, such as 0.1.0+src.1f0e9a3c5b7d."""
    root = Path(mnist_ray.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if "_jobs" in path.relative_to(root).parts:
            continue
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{mnist_ray.__version__}+src.{digest.hexdigest()[:12]}"


@cache
def git_commit() -> str | None:
    """Returns the commit of the git checkout that the package runs from; None if it is installed otherwise."""
    root = Path(mnist_ray.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
