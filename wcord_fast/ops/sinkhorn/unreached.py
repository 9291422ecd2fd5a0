"""A `tol` that was not reached within `iters` is said: by a warning, for a device by that of `wcord_fast.check`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import status
from ..warn import warn_once
from .reference import SolveOptions, SolveResult


def tell(solved: SolveResult, asked: SolveOptions) -> None:
    """Warns once per line of the caller on the CPU; elsewhere leaves a note on the device, without reading it."""
    error = solved.marginal_error
    if asked.tol is None or error.device.type == "meta":
        return
    if error.device.type != "cpu":
        status.note_unreached(worst(solved, asked), asked.iters)
    elif (late := _late(solved, asked)).any():
        problems = f" in {int(late.sum())} of {late.numel()} problems" if late.dim() else ""
        warn_once(
            f"tol = {asked.tol:g} was not reached{problems}: {status.unreached(float(error[late].max()), asked.iters)} "
            f"(solver={asked.solver!r}, eps={asked.eps:g})"
        )


def worst(solved: SolveResult, asked: SolveOptions) -> Tensor:
    """The largest marginal error of the problems that have not reached `tol`, a scalar; 0 where all have."""
    return torch.where(_late(solved, asked), solved.marginal_error, 0).amax()


def _late(solved: SolveResult, asked: SolveOptions) -> Tensor:
    """bool like the marginal errors. A problem that was stopped has reached it, whatever rounding its error has."""
    tol = torch.inf if asked.tol is None else asked.tol
    return (solved.marginal_error > tol) & (solved.iterations >= asked.iters)
