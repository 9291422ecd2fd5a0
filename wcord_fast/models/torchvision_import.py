"""`import torchvision`, which is an optional extra of this package."""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

import torch

INSTALL = "pip install 'wcord-fast[torchvision]'"
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPS = ("nms", "qnms")  # C++ operators that its Python files need during import
_definitions: list[torch.library.Library] = []  # an operator lives as long as its library


def torchvision_models(name: str) -> ModuleType:
    """`torchvision.models`, for the network `name`.

    Where torchvision's C++ operators cannot be loaded (PyPI's torchvision beside PyTorch's CPU wheel), its import fails
    at the first of them. The networks need none, so these are declared without code, and the import is repeated.

    Raises:
        ImportError: torchvision is not installed, or cannot be imported; the message says what to do.
    """
    try:
        return importlib.import_module("torchvision.models")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchvision":
            raise
        raise ImportError(f"{name} needs torchvision, which is not installed: {INSTALL}") from None
    except RuntimeError as error:
        if not re.search(r"operator torchvision::\w+ does not exist", str(error)):
            raise
    _unload()
    for op in _OPS:
        _declare_operator(op)
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        _unload()
        raise ImportError(
            f"{name} needs torchvision, and the one here does not fit PyTorch {torch.__version__}: {error}"
        ) from error


def _unload() -> None:
    """Remove the modules of a failed import."""
    for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[module]


def _declare_operator(op: str) -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        library.define(op + _SCHEMA)
    except RuntimeError:  # already defined
        return
    _definitions.append(library)
