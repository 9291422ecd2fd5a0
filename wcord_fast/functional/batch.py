"""Contrast within a batch: row i of one side against all rows of the other side, and the reverse.

Nothing of size B x B is kept: scores are made in tiles, in forward and again in backward.

Sources: InfoNCE (van den Oord et al., 2018; both directions as in CLIP, ICML 2021); the sigmoid loss (SigLIP, ICCV
2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import checks
from ..ops.contrast import autograd
from ..ops.contrast.global_batch import global_losses
from ..ops.contrast.reference import Contrast
from ..ops.dispatch import BACKENDS
from ..ops.first_order import first_order
from ..ops.tensors import accumulation_dtype

SCOPES = ("rank", "global")


@first_order
def batch_infonce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float = 0.07,
    labels: Tensor | None = None,
    index: Tensor | None = None,
    scope: str = "rank",
    backend: str = "auto",
) -> Tensor:
    """InfoNCE of each pair (x_i, y_i) against the other rows of the batch, both directions summed.

    With s_ij = <x_i, y_j> / temperature and N_i the negatives of pair i:

        loss_i = log(exp(s_ii) + sum_{j in N_i} exp(s_ij)) - s_ii
               + log(exp(s_ii) + sum_{j in N_i} exp(s_ji)) - s_ii

    The mean over i is twice CLIP's loss. N_i is every other row without `labels` and `index`.

    Args:
        x: [B, D] float16, bfloat16, float32 or float64; need not be contiguous or of unit norm.
        y: [B, D] of any of these dtypes, on x's device.
        temperature: tau > 0, a constant. (To train a scale, pass temperature=1.0 and x times the scale.)
        labels: int64 or int32 [B]; rows of one class are no negatives of each other. Below 0 the class is unknown.
        index: int64 or int32 [B], numbers of images; rows of one image are no negatives of each other. Negative numbers
            are numbers like others, not unknown.
        scope: "rank": the negatives are rows of this process. "global": rows of all ranks of the default process group.
            All ranks call it then, with equal options, and all or none of them give labels, and index; batch sizes may
            differ. The losses are those of this rank's pairs. The gradients are those of the sum over all ranks'
            losses, as one process gets them for the joined batch, in rank order. Backward is collective, too.
        backend: "auto", "native" (CPU), "triton" (CUDA, not fp64) or "reference".
    Returns:
        [B] losses in fp32 (fp64 if x or y is fp64), differentiable with respect to x and y; gradients are in their
        dtypes.
    Raises:
        TypeError, ValueError: a wrong argument; on the CPU also a row of x or y that is not finite. (On CUDA all losses
            are NaN then, see `wcord_fast.check`.)
        NotImplementedError: a backend that has no such op on this device; double backward, forward-mode differentiation
            and the transforms of `torch.func`.
    """
    temperature = checks.divisor("temperature", temperature, _accumulate_dtype(x, y))
    return _losses("infonce", x, y, 1 / temperature, 0.0, labels, index, scope, backend)


@first_order
def batch_sigmoid(
    x: Tensor,
    y: Tensor,
    *,
    scale: Tensor | float = 10.0,
    bias: Tensor | float = -10.0,
    labels: Tensor | None = None,
    index: Tensor | None = None,
    scope: str = "rank",
    backend: str = "auto",
) -> Tensor:
    """Sigmoid loss of each pair (x_i, y_i) against the other rows of the batch, both directions summed.

    With u_ij = scale * <x_i, y_j> + bias and N_i the negatives of pair i:

        loss_i = 2 softplus(-u_ii) + sum_{j in N_i} (softplus(u_ij) + softplus(u_ji))

    The mean over i is twice SigLIP's loss, which counts each pair of rows once.

    Args:
        scale, bias: finite numbers, or scalar float tensors on x's device, which get a gradient. With scope="global"
            the gradient is this rank's summand: the sum over ranks is one process's.
    Other arguments, results and errors as for `batch_infonce`.
    """
    _accumulate_dtype(x, y)
    scale, bias = (_scalar(name, value, x.device) for name, value in (("scale", scale), ("bias", bias)))
    return _losses("sigmoid", x, y, scale, bias, labels, index, scope, backend)


def _accumulate_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    checks.tensor("x", x, shape=("B", "D"))
    checks.tensor("y", y, shape=tuple(x.shape))
    return accumulation_dtype(x, y)


def _scalar(name: str, value: Tensor | float, device: torch.device) -> Tensor | float:
    if isinstance(value, Tensor):
        checks.tensor(name, value, shape=())
        if value.device != device:
            raise ValueError(f"{name} is on {value.device} but x is on {device}; expected one device")
        return value
    value = checks.number(name, value)
    if not abs(value) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{name}: expected a number that is finite in float32, got {value:g}")
    return value


def _losses(critic, x, y, scale, bias, labels, index, scope, backend) -> Tensor:
    checks.choice("scope", scope, SCOPES)
    checks.choice("backend", backend, ("auto", *BACKENDS))
    tensors = {"x": x, "y": y}
    for name, value in (("labels", labels), ("index", index)):
        if value is not None:
            tensors[name] = checks.tensor(name, value, shape=(x.shape[0],), dtypes=checks.INDICES)
    checks.same_device(**tensors)
    c = Contrast(critic, x, y, y, 0, True, scale, bias, labels, labels, index, index)
    return global_losses(c, backend) if scope == "global" else autograd.losses(c, backend)
