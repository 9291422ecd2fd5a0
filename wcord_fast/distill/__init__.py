"""Distillation methods: one file each, behind one protocol (`base.Method`) and one registry."""

from .base import Batch, Loss, Method, Options, Outputs, Pair, check_ranges, described
from .registry import (
    METHODS,
    PLUS_KD,
    CannotServe,
    build,
    create,
    names,
    options_for,
    pair_of,
    parse,
    probe,
    register,
    sections,
)

__all__ = [
    "METHODS",
    "PLUS_KD",
    "Batch",
    "CannotServe",
    "Loss",
    "Method",
    "Options",
    "Outputs",
    "Pair",
    "build",
    "check_ranges",
    "create",
    "described",
    "names",
    "options_for",
    "pair_of",
    "parse",
    "probe",
    "register",
    "sections",
]
