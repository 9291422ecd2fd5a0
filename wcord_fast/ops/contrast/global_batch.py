"""Contrast within the batch of all ranks: every rank holds the rows of all, and the scores of its own pairs only.

Rank r makes two strips of the B x B scores: its x against all y, and its y against all x. A strip gives the losses of
one direction; with the totals and weights of the other ranks' losses (a few numbers per pair) it gives the whole
gradient of this rank's rows, so that no gradient row has to travel. Both passes are collective.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...distributed.ranks import gather_rows, not_compiled, own_slice, ranks, sizes_of
from .. import checks
from ..status import Code
from . import autograd
from .reference import Contrast, Totals


@not_compiled
def global_losses(c: Contrast, backend: str) -> Tensor:
    """Losses [B_r] of this rank's pairs, where `c` is their contrast with one another."""
    if ranks().world == 1:
        return autograd.losses(c, backend)
    return _Losses.apply(c.anchors, c.positives, c.scale, c.bias, c, autograd.Runner(c, backend))


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, scale, bias, c: Contrast, runner: autograd.Runner):
        sizes = sizes_of(len(x), x.device)
        given = [t.long() for t in (c.anchor_label, c.anchor_index) if t is not None]
        all_x, all_y, *all_ids = gather_rows([x.detach(), y.detach(), *given], sizes)
        for name, rows in (("x", all_x), ("y", all_y)):
            checks.finite_rows(name, rows, Code.FEATURE)  # on every rank alike: none waits for one that has raised
        label = all_ids.pop(0) if c.anchor_label is not None else None
        index = all_ids.pop(0) if c.anchor_index is not None else None
        ids = (c.anchor_label, label, c.anchor_index, index)
        of_x, of_y = (runner.values(s) for s in _strips(c.critic, sizes, ids, x, y, all_x, all_y, scale, bias))
        slope = of_x.slope + of_y.slope
        scalars = [t if isinstance(t, Tensor) else None for t in (scale, bias)]
        ctx.save_for_backward(x, y, *scalars, all_x, all_y, slope, of_x.total, of_y.total, *autograd.kept(ids))
        ctx.options = c.critic, sizes
        ctx.fixed, ctx.runner = [None if isinstance(t, Tensor) else t for t in (scale, bias)], runner
        return of_x.value + of_y.value

    @staticmethod
    def backward(ctx, weight):
        x, y, scale, bias, all_x, all_y, slope, x_total, y_total, *ids = ctx.saved_tensors
        critic, sizes = ctx.options
        scalars = (fixed if t is None else t for t, fixed in zip((scale, bias), ctx.fixed, strict=True))
        own = [weight.to(slope.dtype), *((x_total, y_total) if critic == "infonce" else ())]
        row_weight, *totals = gather_rows(own, sizes)
        all_x_total, all_y_total = totals or (x_total, y_total)
        x_strip, y_strip = _strips(critic, sizes, ids, x, y, all_x, all_y, *scalars)
        needs_x, needs_y, *needs_scalars = needs = ctx.needs_input_grad[:4]
        x_known = Totals(slope, x_total, all_y_total)
        y_known = Totals(slope, y_total, all_x_total)
        args = own[0], row_weight
        of_x = ctx.runner.gradients(x_strip, *args, x_known, (needs_x, False, *needs_scalars))
        of_y = ctx.runner.gradients(y_strip, *args, y_known, (True, False, False, False)).anchors if needs_y else None
        result = (of_x.anchors, of_y, of_x.scale, of_x.bias)
        return *autograd.as_inputs(result, (x, y, scale, bias), needs, weight), None, None


def _strips(critic, sizes, ids, x, y, all_x, all_y, scale, bias) -> tuple[Contrast, Contrast]:
    """This rank's x against all y, and its y against all x."""
    options = own_slice(sizes).start, False, scale, bias
    return Contrast(critic, x, y, all_y, *options, *ids), Contrast(critic, y, x, all_x, *options, *ids)
