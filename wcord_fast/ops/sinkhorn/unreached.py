"""Reports a `tol` that was not reached within `iters`: on the CPU a warning, on a device one by `wcord_fast.check`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import status
from ..warn import warn_once
from .reference import SolveOptions, SolveResult


def report(solved: SolveResult, options: SolveOptions) -> None:
    """Warn once per line of the caller on the CPU. Elsewhere mark the device's status, without a wait."""
    error = solved.marginal_error
    if options.tol is None or error.device.type == "meta":
        return
    if error.device.type != "cpu":
        status.note_unreached(worst(solved, options), options.iters)
    elif (late := _unreached(solved, options)).any():
        problems = f" in {int(late.sum())} of {late.numel()} problems" if late.dim() else ""
        warn_once(
            f"tol = {options.tol:g} was not reached{problems}: "
            f"{status.unreached(float(error[late].max()), options.iters)} "
            f"(solver={options.solver!r}, eps={options.eps:g})"
        )


def worst(solved: SolveResult, options: SolveOptions) -> Tensor:
    """The largest marginal error of the problems that have not reached `tol`, a scalar. It is 0 if all have."""
    return torch.where(_unreached(solved, options), solved.marginal_error, 0).amax()


def _unreached(solved: SolveResult, options: SolveOptions) -> Tensor:
    """Whether each problem missed `tol`, bool like the marginal errors. A problem that stopped early has reached it,
    whatever its rounded error is."""
    tol = torch.inf if options.tol is None else options.tol
    return (solved.marginal_error > tol) & (solved.iterations >= options.iters)
