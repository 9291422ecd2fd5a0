"""Distillation methods: one file each, behind one protocol (`base.Method`) and one registry; `fit` trains with them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..extras import require_train
from .base import Batch, Loss, Method, Options, Outputs, Pair, check_ranges, described
from .registry import (
    METHODS,
    PLUS_KD,
    CannotServe,
    build,
    create,
    names,
    options_for,
    options_from,
    pair_of,
    parse,
    probe,
    register,
    sections,
)

if TYPE_CHECKING:
    from ..train.loader_fit import Fitted, fit

LOOP = ("Fitted", "fit")  # in `train`, which imports this package and needs an extra; imported on first use

__all__ = [
    "METHODS",
    "PLUS_KD",
    "Batch",
    "CannotServe",
    "Fitted",
    "Loss",
    "Method",
    "Options",
    "Outputs",
    "Pair",
    "build",
    "check_ranges",
    "create",
    "described",
    "fit",
    "names",
    "options_for",
    "options_from",
    "pair_of",
    "parse",
    "probe",
    "register",
    "sections",
]


def __getattr__(name: str) -> Any:
    if name not in LOOP:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_train(f"wcord_fast.distill.{name}")
    return getattr(import_module("wcord_fast.train.loader_fit"), name)
