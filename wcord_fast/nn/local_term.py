"""LCKT, the local term of WCoRD: a distance between the student's and the teacher's features of one batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed.ranks import gather_rows, own_slice, ranks, sizes_of
from ..functional.ot import KnownPairs, ot_cost, ot_plan, plain_value_and_gradient
from .embed import autocast_off
from .options import WCoRDLossOptions
from .running_center import RunningCenter

UNKNOWN_KEY = 1 << 62  # the key of a batch's first row if its image is unknown; the i-th row's is i more


class LocalTerm(nn.Module):
    """Transport cost, or cost of the known pairs, between two batches of features; the teacher's get no gradient.

    Args:
        s_dim, t_dim: widths of the features.
        options: `lckt_*`, `ot_*` and `feat_dim` are read. Under lckt_center="batch" the loss of one image is 0. Under
            "running" a training batch moves the mean in `finish_step`.
        labelled: whether the classes are known, which lckt_pairs_by="class" needs.
        backend: see `functional.ot_cost`.
    """

    def __init__(self, s_dim: int, t_dim: int, options: WCoRDLossOptions, *, labelled: bool, backend: str):
        super().__init__()
        self.features, self.reduction = options.lckt_features, options.lckt_reduction
        if self.features == "auto":
            self.features = "raw" if s_dim == t_dim else "mapped"
        self.pairs, self.rho, self.pairs_by = options.lckt_pairs, options.lckt_rho, options.lckt_pairs_by
        self.center, self.scope = options.lckt_center, options.ot_scope
        if self.features == "raw" and s_dim != t_dim:
            raise ValueError(
                f"lckt_features='raw' needs equal widths, got s_dim={s_dim} and t_dim={t_dim}; use 'mapped' or 'embed'"
            )
        if self.pairs_by == "class" and not labelled:
            raise ValueError("lckt_pairs_by='class' needs labels, one integer per row; got labels=None")
        self.ot: dict[str, Any] = {
            "cost": options.ot_cost,
            "solver": options.ot_solver,
            "iters": options.ot_iters,
            "eps": options.ot_eps,
            "backend": backend,
        }
        self.map = nn.Linear(s_dim, t_dim) if self.features == "mapped" else None
        width = options.feat_dim if self.features == "embed" else t_dim
        running = self.center == "running" and options.lambda_lckt > 0
        self.running = RunningCenter(width, options.lckt_center_momentum) if running else None

    @property
    def is_collective(self) -> bool:
        """Whether a call in a process group needs all ranks."""
        return self.scope == "global" or (self.running is not None and self.training)

    def forward(self, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        """The unweighted term, a scalar, of x [B, d] and y [B, d] (x [B, s_dim] where it is mapped).

        Rows with equal `key`, int64 [B], are pairs.
        """
        x, y, key = self._prepared(x, y, key, moves=self.training)
        if self.center == "batch" and len(x) == 1:
            return x.sum() * 0
        if self.ot["cost"] == "cosine" and self.pairs != "only":
            self._refuse_zero_rows(x, y)
        if self.pairs == "only":
            value = pair_cost(x, y, self.ot["cost"])
            if value.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.isfinite(value):
                raise ValueError(f"f_s, f_t: squared distances of {self.features!r} features overflow {value.dtype}")
        else:
            value = ot_cost(x, y, pairs=self._labels(key), rho=self.rho, **self.ot)
        return value * len(x) if self.reduction == "sum" else value

    def value_and_gradient(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The term for rows without a graph, and its gradient in x: equal to `forward` and its backward."""
        if self.pairs == self.center == "none" and self.map is None:
            direct = plain_value_and_gradient(x, y, **self.ot)
            if direct is not None and (self.scope == "rank" or ranks().world == 1):
                value, grad = direct
                return (value * len(x), grad.mul_(len(x))) if self.reduction == "sum" else direct
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = self(leaf, y, key)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    @torch.no_grad()
    def on_pairs(self, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        """The mass that this batch's transport plan puts on pairs (rows of one image or class): a scalar in [0, 1]."""
        x, y, key = self._prepared(x, y, key, moves=False)
        if self.pairs == "only" or len(x) == 1:
            return x.new_ones(())
        plan = ot_plan(x, y, pairs=self._labels(key), rho=self.rho, **self.ot)
        return (plan * (key[:, None] == key[None])).sum()

    def finish_step(self) -> None:
        """End a training step: add the batch of the last forward to the running mean."""
        if self.running is not None:
            self.running.finish_step()

    def reset_parameters(self) -> None:
        """Initialise as the constructor does: the map from torch's generator, the running mean empty."""
        for module in (self.map, self.running):
            if module is not None:
                module.reset_parameters()

    def _prepared(self, x: Tensor, y: Tensor, key: Tensor, *, moves: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Both sides and the rows' keys for the cost: mapped, of all ranks, centred, in one dtype of at least fp32."""
        if self.map is not None:
            with autocast_off(x.device):
                x = self.map(x.to(self.map.weight.dtype))
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        x, y = x.to(dtype), y.detach().to(dtype)
        if self.scope == "global" and ranks().world > 1:
            x, y, key = _of_all_ranks(x, y, key)
        if self.running is not None:
            x, y = self.running(x, y, moves=moves, joined=self.scope == "global")
        elif self.center == "batch":
            x, y = x - x.mean(0), y - y.mean(0)
        return x, y, key

    def _refuse_zero_rows(self, x: Tensor, y: Tensor) -> None:
        """ValueError on the CPU for a row that is zero once it is mapped and centred. The op would call it x or y."""
        seen = self.features == "raw" and self.center == "none"  # WCoRDLoss has looked at them as they are
        if x.device.type != "cpu" or torch.compiler.is_compiling() or self.features == "embed" or seen:
            return
        centred = " once centred" * (self.center != "none")
        mapped = " once mapped" * (self.map is not None)
        for name, rows, how in (("f_s", x, centred or mapped), ("f_t", y, centred)):
            zero = (rows.detach() == 0).all(1)
            if zero.any():
                raise ValueError(
                    f"{name}: row {int(zero.nonzero()[0])} is zero{how}, which has no direction for the cosine"
                )

    def _labels(self, key: Tensor) -> KnownPairs:
        return (key, key) if self.pairs == "prior" else None

    def extra_repr(self) -> str:
        known = f", rho={self.rho}, pairs_by={self.pairs_by!r}" if self.pairs == "prior" else ""
        return (
            f"features={self.features!r}, pairs={self.pairs!r}{known}, center={self.center!r}, "
            f"reduction={self.reduction!r}, scope={self.scope!r}"
        )


def pair_cost(x: Tensor, y: Tensor, cost: str) -> Tensor:
    """Mean over i of the cost of x_i [n, d] and y_i: 1 - <x, y> / (|x| |y|) ("cosine") or |x - y|^2."""
    if cost == "sqeuclidean":
        return (x - y).square().sum(-1).mean()
    # The largest entry is divided out first: squares then neither overflow nor vanish, and the cosine does not change.
    x, y = (t / t.detach().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(t.dtype).tiny) for t in (x, y))
    return 1 - (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(-1).mean()


def _of_all_ranks(x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and keys of all ranks, in rank order; the gradient of this rank's rows of x is multiplied by B / B_rank."""
    sizes = sizes_of(len(x), x.device)
    part, own = own_slice(sizes), x.view_as(x)
    key = torch.where(key >= UNKNOWN_KEY, key + part.start, key)  # unknown images of two ranks are not one
    others, y, key = gather_rows([x, y, key], sizes)
    if own.requires_grad:
        own.register_hook(lambda grad: grad * (len(y) / len(x)))
    return torch.cat((others[: part.start], own, others[part.stop :])), y, key
