"""The largest singular value of a weight by the power method, in compiled code on the CPU (csrc/cpu/spectral.cpp)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import native_module


class Spectral(NamedTuple):
    """A weight's largest singular value and vectors, as the power method has them: constants for the gradient."""

    sigma: float
    u: Tensor  # [out]
    v: Tensor  # [in]

    def gradient_(self, grad: Tensor, weight: Tensor) -> Tensor:
        """The loss's gradient at W [out, in], in place of the contiguous `grad`, that at W / sigma divided by sigma."""
        weight = weight.detach().contiguous()
        record = _record(weight, self.u, self.v, sigma=self.sigma, grad=grad.data_ptr())
        native_module.module().cpu_spectral_gradient(record)
        return grad


def leading(weight: Tensor, u: Tensor, v: Tensor, least: float, moves: bool) -> Spectral:
    """sigma of W [out, in] with u and v after one more iteration, in new memory; with `moves` False u^T W v of these.

    Args:
        weight, u, v: contiguous, on the CPU, of one dtype, fp32 or fp64.
        least: norms are taken as at least this.
    """
    native = native_module.module()
    if not moves:
        return Spectral(native.cpu_spectral_iterate(_record(weight, u, v)), u.clone(), v.clone())
    new_u, new_v = torch.empty_like(u), torch.empty_like(v)
    record = _record(weight, u, v, moves=1, least=least, new_u=new_u.data_ptr(), new_v=new_v.data_ptr())
    return Spectral(native.cpu_spectral_iterate(record), new_u, new_v)


def _record(weight: Tensor, u: Tensor, v: Tensor, **more: float):
    return native_module.module().Spectral(
        weight=weight.data_ptr(),
        wide=weight.dtype is torch.float64,
        out_dim=weight.shape[0],
        in_dim=weight.shape[1],
        u=u.data_ptr(),
        v=v.data_ptr(),
        **more,
    )
