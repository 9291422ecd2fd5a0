"""wcord_fast: fused contrastive and optimal-transport knowledge distillation for PyTorch.

Importing it imports nothing else, not even PyTorch: each name and subpackage is imported when it is first used.
Nothing is compiled, and neither a GPU nor Triton is needed.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import data, distill, functional, models, train
    from .explanation import explain
    from .info import report as info
    from .nn import CRDLoss, FeatureQueue, KDLoss, MemoryBank, NegativeSampler, OTLoss, WCoRDLoss
    from .ops.dispatch import use_backend
    from .ops.status import check

try:
    __version__ = version("wcord-fast")
except PackageNotFoundError:  # a source tree on the path
    __version__ = "0+unknown"

__all__ = [
    "CRDLoss",
    "FeatureQueue",
    "KDLoss",
    "MemoryBank",
    "NegativeSampler",
    "OTLoss",
    "WCoRDLoss",
    "check",
    "data",
    "distill",
    "explain",
    "functional",
    "info",
    "models",
    "train",
    "use_backend",
]
_HOMES = {"check": "ops.status", "explain": "explanation", "use_backend": "ops.dispatch"}
_SUBPACKAGES = ("data", "distill", "distributed", "functional", "info", "models", "nn", "ops", "train")


def __getattr__(name: str):
    if name in _SUBPACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name in __all__:
        result = getattr(importlib.import_module(f".{_HOMES.get(name, 'nn')}", __name__), name)
        globals()[name] = result
        return result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
