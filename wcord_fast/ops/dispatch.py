"""The support table, and the function that chooses a backend by it.

An explicit choice (argument, then `use_backend`, then WCORD_FAST_BACKEND) never falls back: what the table does not
list raises NotImplementedError, what is listed but cannot run here raises RuntimeError with the reason.
`auto` takes the first row that can run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from . import checks

BACKENDS = ("native", "triton", "reference")


@dataclass(frozen=True)
class Row:
    """One line of the support table: `backend` can do `op` with `plan` on `device`."""

    op: str
    plan: str
    device: str
    backend: str
    note: str


@dataclass(frozen=True)
class Choice:
    """The chosen plan and backend, and the reason."""

    op: str
    plan: str
    device: str
    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op} (plan={self.plan}, device={self.device}): {self.backend}: {self.reason}"


BANK_SCORES = (
    "bank_nce",
    "bank_mean_score",
    "bank_log_z",
    "bank_infonce",
    "bank_sigmoid",
)  # with plans gather and dense

# In order of preference within (op, plan, device): the first row that can run is what `auto` takes.
SUPPORT: tuple[Row, ...] = (
    Row("draw", "-", "cpu", "native", "C++, OpenMP over anchors"),
    Row("draw", "-", "cuda", "native", "one block per anchor and chunk of draws"),
    Row("draw", "-", "any", "reference", "int64 PyTorch arithmetic, any device"),
    Row("bank_init", "-", "cpu", "native", "C++, OpenMP over rows"),
    Row("bank_init", "-", "cuda", "native", "one thread per four neighbours"),
    Row("bank_init", "-", "any", "reference", "plain PyTorch, any device"),
    Row("bank_update", "-", "cpu", "native", "C++, OpenMP over rows"),
    Row("bank_update", "-", "cuda", "native", "one warp per row, no atomics"),
    Row("bank_update", "-", "any", "reference", "plain PyTorch, any device"),
    *(
        Row(op, plan, device, backend, note)
        for op in BANK_SCORES
        for plan, device, backend, note in (
            ("gather", "cpu", "native", "C++, draws binned by bank tile, loss and gradient in one pass"),
            ("gather", "cuda", "native", "draws and scores in one kernel"),
            ("gather", "any", "reference", "plain PyTorch, chunked over anchors"),
            ("dense", "cpu", "native", "C++, blocked products round the critic, loss and gradient in one pass"),
            ("dense", "cuda", "triton", "split bf16 products on the tensor cores, loss and gradient in one pass"),
            ("dense", "any", "reference", "plain PyTorch, chunked over anchors"),
        )
    ),
    Row("batch", "-", "cpu", "native", "C++, tiles of scores that are made twice, OpenMP over panels of rows"),
    Row("batch", "-", "cuda", "triton", "split bf16 products on the tensor cores, tiles of scores that are made twice"),
    Row("batch", "-", "any", "reference", "plain PyTorch, chunked over anchors"),
    Row("ot", "-", "cpu", "native", "C++, OpenMP over strips of rows or over problems"),
    Row("ot", "-", "cuda", "native", "one launch while the matrix fits in shared memory"),
    Row("ot", "-", "cuda", "triton", "tiles recomputed on the tensor cores, O(n + m) memory"),
    Row("ot", "-", "any", "reference", "plain PyTorch, stored cost matrix"),
    Row("ot_matrix", "-", "cpu", "native", "C++, shared costs: one product a half step for all problems"),
    Row("ot_matrix", "-", "cuda", "native", "one launch while a matrix fits in shared memory"),
    Row("ot_matrix", "-", "cuda", "triton", "shared costs: products for all problems; else tiles of the cost are read"),
    Row("ot_matrix", "-", "any", "reference", "plain PyTorch, some four matrices per problem"),
    Row("ot_project", "-", "cpu", "native", "C++, one problem a lane"),
    Row("ot_project", "-", "any", "reference", "plain PyTorch in the log domain"),
)

OPS = tuple(dict.fromkeys(row.op for row in SUPPORT))
_local = threading.local()


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Choose the backend of every call in this block (this thread only) that does not name its own.

    Args:
        backend: "auto", "native", "triton" or "reference".
    """
    checks.choice("backend", backend, ("auto", *BACKENDS))
    before = getattr(_local, "backend", None)
    _local.backend = backend
    try:
        yield
    finally:
        _local.backend = before


def requested(backend: str = "auto") -> str:
    """The requested backend: argument, then `use_backend`, then WCORD_FAST_BACKEND, then "auto"."""
    if backend != "auto":
        return checks.choice("backend", backend, ("auto", *BACKENDS))
    chosen = getattr(_local, "backend", None) or os.environ.get("WCORD_FAST_BACKEND") or "auto"
    return checks.choice("WCORD_FAST_BACKEND", chosen, ("auto", *BACKENDS))


def cannot_run(backend: str, device: str) -> str | None:
    """The reason why `backend` cannot run on `device` in this process, or None if it can."""
    if backend == "reference":
        return None
    if backend == "native":
        from . import native_module

        return native_module.unavailable_reason(device)
    from . import triton_module

    return triton_module.unavailable_reason(device)


def resolve(
    op: str,
    *,
    plan: str = "-",
    device: torch.device | str = "cpu",
    backend: str = "auto",
    unfit: Callable[[str], str | None] | None = None,
) -> Choice:
    """The backend that runs `op` with `plan` on `device`, with its reason.

    Args:
        unfit: returns, for a backend, the reason why it does not support this call's tensors (a dtype, a size), or
            None. `auto` skips such a backend; an explicit one raises NotImplementedError.
    Raises:
        NotImplementedError: an explicit backend has no row in the support table for this case.
        RuntimeError: the row exists, but the backend cannot run in this process.
    """
    kind = device if device in ("cpu", "cuda") else torch.device(device).type
    find = _cached if unfit is None else _find  # without `unfit` nothing depends on the call's tensors
    return find(op, plan, kind, requested(backend), cannot_run, unfit)


def _find(
    op: str,
    plan: str,
    kind: str,
    backend: str,
    cannot_run: Callable[[str, str], str | None],
    unfit: Callable[[str], str | None] | None,
) -> Choice:
    rows = [r for r in SUPPORT if r.op == op and r.plan == plan and r.device in (kind, "any")]
    if backend != "auto":
        row = next((r for r in rows if r.backend == backend), None)
        if row is None:
            have = ", ".join(f"{r.backend} on {r.device}" for r in SUPPORT if r.op == op and r.plan == plan)
            raise NotImplementedError(
                f"backend={backend!r}: {op} with plan={plan!r} on {kind} is not in the support table ({have})"
            )
        why = cannot_run(backend, kind)
        if why:
            raise RuntimeError(f"backend={backend!r}: {op} on {kind} cannot run here: {why}")
        if unfit and (why := unfit(backend)):
            raise NotImplementedError(f"backend={backend!r}: {op} on {kind}: {why}")
        return Choice(op, plan, kind, backend, f"asked for; {row.note}")
    passed_over: list[str] = []
    for row in rows:
        why = cannot_run(row.backend, kind) or (unfit(row.backend) if unfit else None)
        if why is None:
            reason = row.note + ("" if not passed_over else f" ({'; '.join(passed_over)})")
            return Choice(op, plan, kind, row.backend, reason)
        passed_over.append(f"not {row.backend}: {why}")
    raise NotImplementedError(f"{op} with plan={plan!r} has no backend on {kind}")


_cached = functools.lru_cache(maxsize=256)(_find)
