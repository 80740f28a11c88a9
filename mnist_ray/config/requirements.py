"""What mnist-ray needs of a cluster's node, and how a process knows that it is a job there.

Imports nothing but the standard library, and is written for Pythons too old for the rest: it tells what is missing.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version

JOB_VARIABLE = "MNIST_RAY_IN_JOB"
PYTHON = (3, 11)
# As in pyproject.toml, which a job doesn't carry; a test compares them.
REQUIREMENTS = {
    "torch": "2.11",
    "torchvision": "0.26",
    "ray": "2.56",
    "pyarrow": "20",
    "click": "8.1",
    "boto3": "1.36",
    "pydantic": "2.9",
    "rich": "13",
    "scikit-learn": "1.5",
    "scipy": "1.13",
    "safetensors": "0.4.5",
    "ruamel.yaml": "0.18",
    "matplotlib": "3.9",
    "jinja2": "3.1",
    "numpy": "1.26",
    "pillow": "10",
}


def missing_requirements() -> str:
    """Returns what this Python lacks and what to do, "" if nothing."""
    if sys.version_info < PYTHON:
        there, needed = (".".join(map(str, found)) for found in (sys.version_info[:2], PYTHON))
        return f"this cluster's node has Python {there} and mnist-ray needs {needed} or newer; use another image"
    lacks = [found for found in map(_lack, REQUIREMENTS) if found]
    found = ", ".join(lacks)
    return f"this cluster's node lacks {found}; submit with --pip, or install them on the nodes" if lacks else ""


def _lack(name: str) -> str:
    try:
        there = version(name)
    except PackageNotFoundError:
        return f"{name}>={REQUIREMENTS[name]}"
    if _numbers(there) < _numbers(REQUIREMENTS[name]):
        return f"{name}>={REQUIREMENTS[name]} (has {there})"
    return ""


def _numbers(text: str) -> "list[int]":
    return [int(number) for number in re.findall(r"\d+", text.split("+")[0])[:3]]
