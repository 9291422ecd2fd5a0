"""Distillation methods by name."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..dotted import resolve
from ..models.logits import class_logits_of
from ..nn.sampler import seed_bits
from ..ops import checks
from .ab import AB, ABOptions
from .at import AT, ATOptions
from .base import Method, Options, Outputs, Pair
from .cc import CC, CCOptions
from .ce import CE
from .crd import CRD, CRDOptions
from .dkd import DKD, DKDOptions
from .eval_mode import eval_mode
from .fitnet import FitNet, FitNetOptions
from .fsp import FSP, FSPOptions
from .ft import FT, FTOptions
from .kd import KD, KDOptions
from .nst import NST, NSTOptions
from .pkt import PKT, PKTOptions
from .rkd import RKD, RKDOptions
from .sinkd import SinKD, SinKDOptions
from .sp import SP, SPOptions
from .vid import VID, VIDOptions
from .wcord import WCoRD, WCoRDOptions
from .wkd import WKD, WKDOptions
from .wkd_f import WKDF, WKDFOptions

PLUS_KD = "+kd"
M = TypeVar("M", bound=Method)


class CannotServe(ValueError):
    """A method cannot serve this pair of networks; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One selectable name.

    Attributes:
        method, options: the class, and that of its options.
        section: where the options live in a configuration; several names may share one section.
        fixed: option values that the name fixes.
    """

    method: type[Method]
    options: type[Options]
    section: str | None = None
    fixed: dict[str, Any] = field(default_factory=dict)


METHODS: dict[str, Entry] = {
    "ce": Entry(CE, Options),
    "kd": Entry(KD, KDOptions, "kd"),
    "dkd": Entry(DKD, DKDOptions, "dkd"),
    "wkd": Entry(WKD, WKDOptions, "wkd"),
    "wkd_f": Entry(WKDF, WKDFOptions, "wkd_f"),
    "sinkd": Entry(SinKD, SinKDOptions, "sinkd"),
    "fitnet": Entry(FitNet, FitNetOptions, "fitnet"),
    "at": Entry(AT, ATOptions, "at"),
    "sp": Entry(SP, SPOptions, "sp"),
    "cc": Entry(CC, CCOptions, "cc"),
    "vid": Entry(VID, VIDOptions, "vid"),
    "rkd": Entry(RKD, RKDOptions, "rkd"),
    "pkt": Entry(PKT, PKTOptions, "pkt"),
    "nst": Entry(NST, NSTOptions, "nst"),
    "ft": Entry(FT, FTOptions, "ft"),
    "ab": Entry(AB, ABOptions, "ab"),
    "fsp": Entry(FSP, FSPOptions, "fsp"),
    "crd": Entry(CRD, CRDOptions, "crd"),
    "wcord": Entry(WCoRD, WCoRDOptions, "wcord"),
    "gckt": Entry(WCoRD, WCoRDOptions, "wcord", {"lambda_lckt": 0.0}),
    "lckt": Entry(WCoRD, WCoRDOptions, "wcord", {"lambda_gckt": 0.0}),
}


def names() -> tuple[str, ...]:
    """The methods; every one but "kd" may be followed by "+kd"."""
    return tuple(METHODS)


def register(name: str, *, section: str | None = None, **fixed: Any) -> Callable[[type[M]], type[M]]:
    """A class decorator that makes a method selectable by name, here and in the command.

        @distill.register("mine")
        class Mine(distill.Method):
            def __init__(self, pair: distill.Pair, options: MineOptions): ...
            def own_loss(self, student, teacher, batch) -> distill.Loss: ...

    The command finds it by the dotted path of the class: `wcord-fast distill --methods my_package.my_module.Mine
    --mine.weight 2`.

    Args:
        name: lower-case letters, digits, "_" and "-".
        section: where the options live in a configuration; default: `name`, or none for a method without options of
            its own. The annotation of `options` in the class's constructor is their dataclass.
        **fixed: option values that the name fixes.
    Raises:
        ValueError: the name or section is taken or malformed.
        TypeError: the class is no `Method`, or the annotation of `options` in its constructor is no `Options`.
    """

    def decorate(method: type[M]) -> type[M]:
        _add_entry(name, method, section, fixed)
        return method

    return decorate


def _add_entry(name: str, method: Any, section: str | None, fixed: dict[str, Any], key: str | None = None) -> Entry:
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise TypeError(f"method: expected a class derived from distill.Method, got {method!r}")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise ValueError(f"name: expected lower-case letters, digits, '_' and '-', got {name!r}")
    options = typing.get_type_hints(method.__init__).get("options", Options)
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise TypeError(f"{method.__name__}: expected its `options` annotated with a distill.Options, got {options!r}")
    if options is not Options:
        section = section or name.replace("-", "_")
        taken = sections().get(section)
        if taken is not None and taken is not options and taken.__qualname__ != options.__qualname__:
            raise ValueError(f"section: {section!r} holds the options of another method, {taken.__qualname__}")
    entry = Entry(method, options, section if options is not Options else None, fixed)
    present = METHODS.get(key or name)
    if present is not None and present.method.__qualname__ != method.__qualname__:
        raise ValueError(f"name: {name!r} is taken by {present.method.__qualname__}")
    METHODS[key or name] = entry  # a reloaded module replaces its own entry
    return entry


def _register_path(path: str) -> None:
    """Register a user's method by its dotted path, "package.module.Class" or "package.module:Class".

    Raises:
        ValueError: the path cannot be imported.
        TypeError: it is no method.
    """
    if path not in METHODS:
        method = resolve("method", path)
        entry = next((entry for entry in METHODS.values() if entry.method is method), None)
        if entry is not None:
            METHODS[path] = entry
        else:
            _add_entry(re.split("[.:]", path)[-1].lower(), method, None, {}, key=path)


def sections() -> dict[str, type[Options]]:
    """The sections of a configuration that hold methods' options."""
    return {e.section: e.options for e in METHODS.values() if e.section}


def parse(name: str) -> tuple[str, bool]:
    """A method's canonical name, or the dotted path of a user's class, and whether "+kd" followed it.

    Raises:
        ValueError: an unknown method (the nearest is suggested), or "kd+kd".
    """
    if not isinstance(name, str):
        raise TypeError(f"method: expected a str, got {type(name).__name__}")
    key = name.strip().replace(" ", "")
    base, plus = key.removesuffix(PLUS_KD), key.endswith(PLUS_KD)
    if "." in base or ":" in base:
        _register_path(base)
    else:
        base, plus = base.lower().removesuffix(PLUS_KD), key.lower().endswith(PLUS_KD)
        checks.choice("method", base, METHODS)
    if plus and base == "kd":
        raise ValueError(f"method: {name!r} has KD twice; its weight is the option kd_weight")
    return base, plus


def options_for(name: str, section: Options | None = None) -> Options:
    """The options of the method `name`: those of its section (default: published values), with those the name fixes."""
    base, plus = parse(name)
    entry = METHODS[base]
    options = replace(section if section is not None else entry.options(), **entry.fixed)
    return replace(options, kd_weight=1.0) if plus and options.kd_weight == 0 else options


def options_from(name: str, given: Options | Mapping[str, Any] | None, argument: str = "options") -> Options:
    """The options of the method `name`, from its options record or some fields of one.

    Args:
        name: the method's name.
        given: the record or the fields; None: all options have their defaults.
        argument: the name of `given` in messages.
    Raises:
        ValueError: an unknown name, or a bad value.
        TypeError: an option that the method does not have (the nearest is suggested); another method's record; neither
            a record nor a mapping.
    """
    base, _ = parse(name)
    record = METHODS[base].options
    if isinstance(given, Options):
        if not isinstance(given, record):
            raise TypeError(f"{argument}: expected {record.__name__} for {name!r}, got {type(given).__name__}")
        return options_for(name, given)
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{argument}: expected {record.__name__} or a mapping of its fields, got {given!r}")
    checks.known_names(f"method {base!r}", given or {}, [f.name for f in fields(record)])
    return options_for(name, record(**(given or {})))


def build(name: str, pair: Pair, options: Options) -> Method:
    """The method `name` for this pair of networks.

    Raises:
        CannotServe: the method cannot serve them; a ValueError that says why.
    """
    base, _ = parse(name)
    try:
        return METHODS[base].method(pair, options)
    except ValueError as error:
        raise CannotServe(str(error)) from None


def create(
    name: str,
    *,
    student: nn.Module,
    teacher: nn.Module | None = None,
    example: Tensor,
    num_data: int,
    labels: Tensor | np.ndarray | Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> Method:
    """A distillation method by name.

        method = distill.create("wcord", student=s, teacher=t, example=images, num_data=50_000, labels=all_labels)
        out_s, out_t = (distill.Outputs(*net(images, return_features=True)) for net in (s, t))
        batch = distill.Batch(images, labels, index)
        loss = F.cross_entropy(out_s.logits, labels) + method(out_s, out_t, batch).value

    A method whose `fills_banks` is True ("wkd" without a cost file) needs `fill_banks` with every training image, then
    `banks_filled`, before its first loss.

    Args:
        name: one of `names()`, any case, optionally with "+kd" ("crd+kd").
        student, teacher: networks whose `net(images, return_features=True)` returns (features, logits), such as those
            of `wcord_fast.models`. teacher None: only for "ce".
        example: images [B, C, H, W]; one forward of them in eval mode shows the features' shapes.
        num_data: images in the training set.
        labels: class of every training image: num_data integers in a tensor, array or sequence, or None.
        seed: seed of the method's banks and draws.
        **options: fields of the method's options (`distill.METHODS[name].options`).
    Raises:
        ValueError: unknown name, bad value, or a pair that this method cannot serve; the message says why.
        TypeError: an option that the method does not have (the nearest is suggested).
    """
    chosen = options_from(name, options)
    pair = pair_of(student, teacher, example, num_data=num_data, labels=labels, seed=seed)
    return build(name, pair, chosen)


def pair_of(
    student: nn.Module,
    teacher: nn.Module | None,
    example: Tensor,
    *,
    num_data: int,
    labels: Tensor | np.ndarray | Sequence[int] | None,
    seed: int,
) -> Pair:
    """The `Pair` of these networks, from one forward of `example` [B, C, H, W] through each."""
    num_data = checks.integer("num_data", num_data, least=1)
    if seed is not None:  # None: the banks' modules draw one
        seed_bits(seed)
    known_labels = None if labels is None else _label_tensor(labels, num_data)
    s = probe(student, example, "student")
    t = None if teacher is None else probe(teacher, example, "teacher")
    return Pair(
        student_shapes=tuple(tuple(f.shape[1:]) for f in s.feats),
        teacher_shapes=() if t is None else tuple(tuple(f.shape[1:]) for f in t.feats),
        classes=s.logits.shape[1],
        teacher_classes=0 if t is None else t.logits.shape[1],
        num_data=num_data,
        labels=known_labels,
        seed=seed,
        without_preact=tuple(
            name
            for name, network in (("student", student), ("teacher", teacher))
            if network is not None and not _takes_preact(network)
        ),
    )


def _takes_preact(network: nn.Module) -> bool:
    """Whether the network has features before the activation: this package's, but Inception-v3."""
    parameters = inspect.signature(network.forward).parameters
    passed_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())  # a wrapper's
    return ("preact" in parameters or passed_on) and getattr(network, "has_preact", True)


def probe(network: nn.Module, images: Tensor, name: str = "network") -> Outputs:
    """A network's outputs in eval mode, without gradient; every module's mode is restored.

    Raises:
        TypeError, ValueError: no module that takes `return_features`, or it does not return (features, logits
            [B, classes]), all tensors; `name` is in the message.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, got {type(network).__name__}")
    try:
        inspect.signature(network.forward).bind(images, return_features=True)
    except (TypeError, ValueError):  # ValueError: a traced module has no signature
        raise TypeError(
            f"{name}: expected a call that takes return_features=True, which that of {type(network).__name__} does "
            "not; models.Tapped(network, features=...) makes any network do so"
        ) from None
    with eval_mode(network), torch.no_grad():
        output = network(images, return_features=True)
    if not isinstance(output, tuple) or len(output) != 2 or not isinstance(output[0], (list, tuple)):
        raise TypeError(
            f"{name}: expected a call with return_features=True to return (features, logits), got "
            f"{type(output).__name__}; models.Tapped(network, features=...) makes any network do so"
        )
    features, logits = output
    for i, feature in enumerate(features):
        if not isinstance(feature, Tensor):
            raise TypeError(f"{name}: expected its features to be tensors, but feature {i} is {type(feature).__name__}")
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{name}: expected its logits, beside the features, to be a tensor [B, classes], got "
            f"{type(logits).__name__}; models.Tapped takes the logits of an object that holds them"
        )
    return Outputs(list(features), class_logits_of(logits, name))


def _label_tensor(labels: Tensor | np.ndarray | Sequence[int], num_data: int) -> Tensor:
    """The labels as int64 [num_data] on the CPU."""
    try:
        result = labels.detach().cpu() if isinstance(labels, Tensor) else torch.from_numpy(np.array(labels))
    except (TypeError, ValueError) as error:
        raise TypeError(f"labels: expected {num_data} integers, got {type(labels).__name__} ({error})") from None
    if result.is_floating_point() or result.is_complex() or result.dtype == torch.bool:
        raise TypeError(f"labels: expected integers, got {str(result.dtype).removeprefix('torch.')}")
    if list(result.shape) != [num_data]:
        raise ValueError(f"labels: expected one per training image, [{num_data}], got {list(result.shape)}")
    return result.to(torch.int64)
