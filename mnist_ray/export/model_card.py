"""The model card: describes an exported network, how to load it, its training data and its limits."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mnist_ray.config.yaml_files import yaml_text
from mnist_ray.results.code_version import code_version
from mnist_ray.results.lineage import libraries
from mnist_ray.text.escape import printable

# The card says where to find the rest.
_CLASSES_SHOWN = 100

_ONNX = """import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({file_name}, providers=["CPUExecutionProvider"])
(logits,) = session.run(["logits"], {{"images": np.asarray(images, dtype=np.float32)}})"""

_TORCH_EXPORT = """import torch

network = torch.export.load({file_name}).module()
logits = network(images.to(torch.float32))"""

_MODULE = """from collections import OrderedDict

{imports}

network = nn.Sequential(
    OrderedDict(
        [
{layers}
        ]
    )
).to({dtype})
network.load_state_dict({load})
network.eval()
with torch.inference_mode():
    logits = network((images.to({dtype}) / 255 - {mean}) / {std})"""


def model_card(
    document: Mapping[str, Any],
    *,
    format_name: str,
    file_name: str,
    sha256: str,
    layers: Sequence[tuple[str, str]],
) -> str:
    """Returns the card of an exported network, in Markdown.

    Args:
      document: checkpoint.json of the run's best checkpoint.
      format_name: state-dict, safetensors, onnx or torch-export.
      file_name: name of the exported file.
      sha256: of its content, in hexadecimal.
      layers: name and constructor call (their repr) of the network's layers.
    """
    takes_pixels = format_name in ("onnx", "torch-export")
    config, classes, normalization = document["config"], document["class_names"], document["normalization"]
    return f"""# {document["run"]}

A classifier of 28x28 grey images into {len(classes)} classes, trained by mnist-ray: variant `{config["variant"]}`,
seed {config["seed"]}, the weights of epoch {document["epoch"]}, which has the lowest validation loss.

| | |
| --- | --- |
| file | {_cell(file_name)} |
| format | {format_name} |
| SHA-256 | `{sha256}` |
| weights before the export, SHA-256 | `{document["files"]["model.safetensors"]}` |

## Use

{_input_text(document, takes_pixels=takes_pixels)}

Output: logits [batch, {len(classes)}], one per class in this order: {_classes_text(classes)}. Softmax turns
them into probabilities. `images` below are pixel values from 0 to 255, a torch tensor [batch, 1, 28, 28].

```python
{_code(document, format_name, file_name, layers)}
```

## Data

| | |
| --- | --- |
| data set | {_cell(config["dataset"])}, its training split |
| fingerprint (SHA-256) | `{document["data_sha256"]}` |
| held out for validation | {_validation(document)} |
| normalization | mean {normalization["mean"]!r}, std {normalization["std"]!r}, as fractions of 255 |

## Metrics

After epoch {document["epoch"]}. The validation examples chose this epoch, so their metrics are slightly optimistic.
Metrics on test data are in an evaluation (`mnist-ray evaluate`), not here.

{_metrics_text(document["metrics"])}

## Config

Its hash is `{document["config_hash"]}`.

```yaml
{yaml_text(config).rstrip()}
```

## Versions

{_versions_text(document)}

## Intended use

Comparing regularization on small images, teaching, and classifying images like those of the training data: the same
size, polarity (whether ink or background is bright) and framing.

## Limits

- Every image gets one of the {len(classes)} classes, whatever it shows; a high probability is no proof.
- Not tested on cameras, pens, framings or populations that the training data lack: measure on your own labelled images
  first.
- Not for decisions about people, money or safety without a person who checks them.
"""


def _validation(document: Mapping[str, Any]) -> str:
    if document.get("is_validation_given"):
        return "the data set's own validation images"
    return f"a share of {document['config']['validation_fraction']:g}, stratified"


def _input_text(document: Mapping[str, Any], *, takes_pixels: bool) -> str:
    if takes_pixels:
        double = " Trained in float64, it computes in float32 here." if _dtype(document) == "float64" else ""
        return (
            "Input: `images`, float32 [batch, 1, 28, 28], raw pixel values from 0 to 255; the normalization is in the "
            f"file.\nAny batch size.{double}"
        )
    return (
        f"Input: {_dtype(document)} [batch, 1, 28, 28], normalized: pixel values / 255, minus the mean, divided by the "
        "std below. The file\nholds only the weights, under the names of the plain PyTorch module."
    )


def _classes_text(classes: Sequence[str]) -> str:
    spans = ", ".join(map(_code_span, classes[:_CLASSES_SHOWN]))
    if len(classes) <= _CLASSES_SHOWN:
        return spans
    return f"{spans} and {len(classes) - _CLASSES_SHOWN:,} more: `class_names` in the run's `best/checkpoint.json`"


def _dtype(document: Mapping[str, Any]) -> str:
    return "float64" if document["config"]["precision"] == "float64" else "float32"


def _code(document: Mapping[str, Any], format_name: str, file_name: str, layers: Sequence[tuple[str, str]]) -> str:
    literal = json.dumps(file_name)
    if format_name == "onnx":
        return _ONNX.format(file_name=literal)
    if format_name == "torch-export":
        return _TORCH_EXPORT.format(file_name=literal)
    imports = "import torch\nfrom torch import nn"
    load = f"torch.load({literal}, weights_only=True)"
    if format_name == "safetensors":
        imports = "import torch\nfrom safetensors.torch import load_file\nfrom torch import nn"
        load = f"load_file({literal})"
    return _MODULE.format(
        imports=imports,
        layers="\n".join(f'            ("{name}", nn.{layer}),' for name, layer in layers),
        load=load,
        dtype=f"torch.{_dtype(document)}",
        **document["normalization"],
    )


def _metrics_text(metrics: Mapping[str, Any]) -> str:
    return f"""| | loss, nats | accuracy |
| --- | --- | --- |
| validation | {metrics["val_loss"]:.4f} | {metrics["val_accuracy"]:.4f} |
| training, during the epoch | {metrics["train_loss"]:.4f} | {metrics["train_accuracy"]:.4f} |"""


def _versions_text(document: Mapping[str, Any]) -> str:
    made_by = document["lineage"]
    trained = {"mnist_ray": document["code_version"], "python": made_by["python"], **made_by["libraries"]}
    exported = {"mnist_ray": code_version(), "python": platform.python_version(), **libraries()}
    rows = "\n".join(f"| {name} | {version} | {exported.get(name, '')} |" for name, version in trained.items())
    where = made_by["gpu"] or f"{made_by['cpu']}, {made_by['num_cpus']} logical processors"
    return f"""| | trained with | exported with |
| --- | --- | --- |
{rows}

Trained on {where}, {made_by["os"]}, by {_code_span(made_by["command_line"])}."""


def _code_span(value: object) -> str:
    """Returns text as a Markdown code span, in which nothing is markup."""
    text = printable(str(value))
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _cell(value: object) -> str:
    return _code_span(value).replace("|", r"\|")
