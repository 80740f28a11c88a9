"""The model card: describes an exported network, how to load it, its training data and its limits."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from mnist_ray.config.yaml_files import yaml_text
from mnist_ray.data.image_shape import MNIST_SHAPE, ImageShape
from mnist_ray.results.code_version import code_version
from mnist_ray.results.lineage import libraries
from mnist_ray.text.escape import printable

# The card says where to find the rest.
_MAX_CLASSES = 100


def model_card(
    document: Mapping[str, Any],
    *,
    format_name: str,
    file_name: str,
    sha256: str,
    layers: Sequence[tuple[str, str]] | None,
    metadata: Sequence[str],
) -> str:
    """Returns the card of an exported network, in Markdown.

    Args:
      document: checkpoint.json of the run's best checkpoint.
      format_name: state-dict, safetensors, onnx or torch-export.
      file_name: name of the exported file.
      sha256: of its content, in hexadecimal.
      layers: name and constructor call (their repr) of the network's layers; None if not all of them are torch's own.
      metadata: keys of the metadata in files of formats that have any.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mnist_ray.export"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code_span": _code_span, "cell": _cell}
    config, lineage = document["config"], document["lineage"]
    shape = ImageShape(*document.get("image_shape", MNIST_SHAPE))
    return environment.get_template("model_card.md").render(
        {name: document[name] for name in ("config", "normalization", "metrics", "lineage")},
        document=document,
        shape=shape,
        format_name=format_name,
        file_name=file_name,
        file_literal=json.dumps(file_name),
        sha256=sha256,
        classes=document["class_names"],
        max_classes=_MAX_CLASSES,
        layers=layers,
        metadata=metadata,
        maker=None if layers else _maker(document),
        dtype="float64" if config["precision"] == "float64" else "float32",
        config_yaml=yaml_text(config),
        trained_with={"mnist_ray": document["code_version"], "python": lineage["python"], **lineage["libraries"]},
        exported_with={"mnist_ray": code_version(), "python": platform.python_version(), **libraries()},
    )


def _maker(document: Mapping[str, Any]) -> dict[str, str]:
    """Returns the lines of code that make a network of other layers than torch's, and where that code is."""
    config, shape = document["config"], ImageShape(*document.get("image_shape", MNIST_SHAPE))
    place, is_own, function = config["model"].rpartition(":")
    num_classes = len(document["class_names"])
    if not is_own:
        settings = {name: config[name] for name in ("model", "hidden_sizes", "dropout", "dropout_layers", "batch_norm")}
        return {
            "imports": "from mnist_ray.config.settings import TrainConfig\n"
            "from mnist_ray.data.image_shape import ImageShape\n"
            "from mnist_ray.models.networks import make_network",
            "call": f"make_network(TrainConfig(**{settings!r}), {shape!r}, {num_classes})",
            "code": f"mnist_ray, version {document['code_version']}",
        }
    given = ", ".join(
        [
            repr(tuple(shape)),
            str(num_classes),
            *(f"{name}={value!r}" for name, value in config["model_settings"].items()),
        ]
    )
    module = place.removesuffix(".py").replace("/", ".")
    return {
        "imports": f"from {module} import {function}",
        "call": f"{function}({given})",
        "code": f"{_code_span(config['model'])}, SHA-256 `{config['code_sha256']}`",
    }


def _code_span(value: object) -> str:
    """Returns text as a Markdown code span, in which nothing is markup."""
    text = printable(str(value))
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _cell(value: object) -> str:
    return _code_span(value).replace("|", r"\|")
