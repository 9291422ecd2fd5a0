"""Optimal transport as a loss module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..functional.ot import ot_cost
from ..functional.ot_options import OTOptions
from ..ops import checks
from ..ops.first_order import first_order
from ..ops.keywords import keywords_of


class OTLoss(nn.Module):
    """Transport cost between two batches of features (LCKT of WCoRD, eq. 12 and 13).

    Args:
        cost, solver, eps, iters, tol, value, debias, backend: as for `wcord_fast.functional.ot_cost`, checked here.
        reduction: "mean" (the plan has mass 1) or "sum" (times the number n of rows of x: every row has mass 1).

    The module holds options only: no parameters, no buffers, nothing in the state dict.
    """

    @keywords_of(ot_cost, without=("a", "b", "reach", "pairs", "rho"))
    def __init__(self, *, reduction: str = "mean", **options: Any) -> None:
        super().__init__()
        self.debias = checks.boolean("debias", options.pop("debias"))
        self.options = OTOptions.checked(**options, reach=None)
        self.reduction = checks.choice("reduction", reduction, ("mean", "sum"))

    @first_order
    def forward(self, x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        """Scalar loss of x [n, d] or [G, n, d] and y [m, d] or [G, m, d], averaged over G.

        Masses a [n] or [G, n] and b [m] or [G, m] are uniform if not given. Errors are those of `ot_cost`.
        """
        loss = ot_cost(x, y, a=a, b=b, debias=self.debias, **self.options._asdict()).mean()
        return loss * x.shape[-2] if self.reduction == "sum" else loss

    def extra_repr(self) -> str:
        options = {**self.options._asdict(), "debias": self.debias, "reduction": self.reduction}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())
