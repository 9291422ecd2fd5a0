"""A trained network in a folder of Hugging Face's layout: weights, configuration, card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..dotted import is_path
from ..extras import require_train
from . import own
from .weights import load_weights

PREFIX = "hf-folder"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
MODEL_TYPE = "wcord_fast"
KEYS = {"architecture": str, "id2label": dict, "num_channels": int, "image_size": list}
KEYS |= {"image_mean": list, "image_std": list}


def is_folder_name(name: Any) -> bool:
    """Whether `name` is "hf-folder:FOLDER"."""
    return isinstance(name, str) and name.strip().lower().startswith(f"{PREFIX}:")


def config_of(
    architecture: str, classes: Sequence[str], shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """The configuration of a network.

    Args:
        architecture: its name for `models.create`; for "hf-folder:FOLDER", the name in that folder is written.
        classes: class names in the order of the logits.
        shape: [C, H, W] of the training images.
        mean, std: normalisation of its images per channel, for pixels in [0, 1].
    """
    if is_folder_name(architecture):
        architecture = read_config(architecture)["architecture"]
    return {
        "model_type": MODEL_TYPE,
        "architecture": architecture,
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
        "num_channels": shape[0],
        "image_size": list(shape[1:]),
        "image_mean": list(mean),
        "image_std": list(std),
    }


def read_config(name: str) -> dict[str, Any]:
    """The configuration in the folder of "hf-folder:FOLDER".

    Raises:
        ValueError: no such folder, or one that `wcord-fast export --format hf` did not write.
    """
    file = _folder(name) / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"no JSON: {error}"
        raise ValueError(f"name: expected a folder that holds {CONFIG}, got {name!r} ({file}: {reason})") from None
    wrong = [key for key, kind in KEYS.items() if not isinstance(config, dict) or not isinstance(config.get(key), kind)]
    if wrong or config.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"name: {file}: expected a configuration of `wcord-fast export --format hf`; "
            + (
                f"missing or of another type: {', '.join(wrong)}"
                if wrong
                else f"model_type is {config['model_type']!r}"
            )
            + "; the folder of a network of transformers is named 'hf:FOLDER'"
        )
    architecture = config["architecture"]
    if is_folder_name(architecture) or (is_path(architecture, libraries=True) and architecture not in own.MAKERS):
        raise ValueError(
            f"name: {file}: the network {architecture!r} is made by code outside of this package, which no file may "
            f"import; call models.create({architecture!r}) first if you trust it"
        )
    return config


def create(
    name: str,
    num_classes: int | None,
    make: Any,
    *,
    in_channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> nn.Module:
    """The network in the folder with its weights.

    Args:
        name: "hf-folder:FOLDER".
        num_classes, in_channels: None, or those of the network.
        make: `models.create`.
        mean, std: see `models.create`; default: the folder's.
        **options: options of `make`.
    Raises:
        ValueError: num_classes or in_channels differ from the folder's; no such folder; weights that do not fit or
            cannot be read.
    """
    config = read_config(name)
    classes, channels = len(config["id2label"]), config["num_channels"]
    for option, given, stored in (("num_classes", num_classes, classes), ("in_channels", in_channels, channels)):
        if given is not None and given != stored:
            raise ValueError(f"{option}: expected {stored}, which {name!r} has, got {given}")
    network = make(
        config["architecture"],
        classes,
        in_channels=channels,
        mean=config["image_mean"] if mean is None else mean,
        std=config["image_std"] if std is None else std,
        **options,
    )
    file = _folder(name) / WEIGHTS
    require_train(f"{PREFIX}:FOLDER", "safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        load_weights(network, load_file(file))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"name: {file}: {error}") from None
    return network


def files_of(config: Mapping[str, Any], card: str, weights: bytes) -> dict[str, bytes]:
    """Contents of the folder's files by name."""
    return {
        WEIGHTS: weights,
        CONFIG: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
        CARD: card.encode(),
    }


def _folder(name: str) -> Path:
    return Path(name.strip().partition(":")[2]).expanduser()
