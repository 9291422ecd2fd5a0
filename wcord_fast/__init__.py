"""wcord_fast: fused contrastive and optimal-transport knowledge distillation for PyTorch.

Importing it compiles nothing and needs neither a GPU nor Triton. Models, data, methods and the training driver are
subpackages that are imported when named: `wcord_fast.models`, `wcord_fast.data`, `wcord_fast.distill`,
`wcord_fast.train`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import _info, functional
from .explain import explain
from .nn import CRDLoss, KDLoss, MemoryBank, NegativeSampler, OTLoss, WCoRDLoss
from .ops.dispatch import use_backend
from .ops.status import check

if TYPE_CHECKING:
    from . import data, distill, models, train

__version__ = _info.__version__

__all__ = [
    "CRDLoss",
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


def info() -> str:
    """Versions, build, devices and the support table, as text (`python -m wcord_fast.info` prints it)."""
    return _info.report()


def __getattr__(name: str):
    if name in ("data", "distill", "models", "train"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
