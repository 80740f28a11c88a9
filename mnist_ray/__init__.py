"""Which regularization helps an image classifier, by how much, and how sure one can be."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_ray.api.calls import compare, evaluate, predict, query, train, tune
    from mnist_ray.api.results import Comparison, Evaluation, Grid, Prediction, Run
    from mnist_ray.errors import MnistRayError

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Evaluation",
    "Grid",
    "MnistRayError",
    "Prediction",
    "Run",
    "compare",
    "evaluate",
    "predict",
    "query",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    # The launcher and Ray's workers import this package and need none of it.
    for module in ("errors", "api.results", "api.calls") if name in __all__ else ():
        if hasattr(found := import_module(f"mnist_ray.{module}"), name):
            return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
