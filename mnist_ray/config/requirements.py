"""The requirements of mnist-ray on a cluster's node, and the variable that marks a process as a job there.

Imports only the standard library and runs on Pythons too old for the rest, to report what is missing.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version

JOB_VARIABLE = "MNIST_RAY_IN_JOB"
PYTHON = (3, 11)
# A copy from pyproject.toml, which isn't shipped with a job; a test compares them.
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
    """Returns what this Python lacks and what to do; "" if it lacks nothing."""
    if sys.version_info < PYTHON:
        there, needed = (".".join(map(str, numbers)) for numbers in (sys.version_info[:2], PYTHON))
        return f"this cluster's node has Python {there} and mnist-ray needs {needed} or newer; use another image"
    lacks = ", ".join(lack for lack in map(_lack, REQUIREMENTS) if lack)
    return f"this cluster's node lacks {lacks}; submit with --pip, or install them on the nodes" if lacks else ""


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
