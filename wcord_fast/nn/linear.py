"""The critic's linear map, with a spectral norm of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.spectral import Spectral, leading
from .state import StateModule, whole

ITERATIONS = 15 + 1  # iterations of the power method for new vectors: torch's 15, and one at registration
TINY = 1e-12
OLD = "parametrizations.weight."  # where torch's parametrization kept weight and vectors


class CriticLinear(nn.Linear, StateModule):
    """x W^T + b, or x (W / sigma)^T + b, in fp32 (fp64 for fp64 weights) whatever the parameters' dtype.

    Args:
        in_features, out_features: widths.
        spectral: divide W by an estimate sigma of its largest singular value: u^T W v, where `u` [out] and `v` [in]
            move by one iteration of the power method in each training forward, and by 16 when they are made. In eval
            mode they do not move. They are constants for the gradient (Miyato et al., ICLR 2018). Values and gradients
            are those of `torch.nn.utils.parametrizations.spectral_norm`, from the first forward on.

    State dicts of torch's parametrization load, and so does a plain `weight`, whose exact singular vectors are taken.
    """

    spectral = False  # until the vectors are made
    u: Tensor
    v: Tensor

    def __init__(self, in_features: int, out_features: int, *, spectral: bool = False):
        super().__init__(in_features, out_features)
        if spectral:
            self.spectral, self.wide = True, ("u", "v")
            # After the bias, as in torch's parametrization: optimisers' states depend on the order of the parameters.
            self._parameters["weight"] = self._parameters.pop("weight")
            dtype = torch.promote_types(self.weight.dtype, torch.float32)
            self.register_buffer("u", torch.empty(out_features, dtype=dtype))
            self.register_buffer("v", torch.empty(in_features, dtype=dtype))
            self._make_vectors()
            self.register_load_state_dict_pre_hook(_rename_to_ours)

    def forward(self, input: Tensor, frozen_too: bool = False) -> Any:
        """[B, in] -> [B, out], called outside autocast; with `frozen_too` also the output with W and b detached."""
        weight, bias = self.effective()
        x = input.to(weight.dtype)
        z = nn.functional.linear(x, weight, bias)
        return (z, nn.functional.linear(x, weight.detach(), bias.detach())) if frozen_too else z

    def effective(self) -> tuple[Tensor, Tensor]:
        """(W or W / sigma, b), in fp32 or fp64; in training this moves u and v."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return (weight / self._sigma(weight), bias) if self.spectral else (weight, bias)

    @torch.no_grad()
    def frozen(self) -> tuple[Tensor, Tensor]:
        """`effective` of eval mode, without gradient: nothing moves. Collective where the parameters are sharded."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        weight, bias = whole(self.weight.detach()).to(dtype), whole(self.bias.detach()).to(dtype)
        return (weight / _quotient(weight, self.u, self.v) if self.spectral else weight), bias

    def reset_parameters(self) -> None:
        """Initialise as the constructor does: `nn.Linear`'s values from torch's generator, then u and v."""
        super().reset_parameters()
        if self.spectral:
            self._make_vectors()

    def rename_to_ours(self, state_dict, prefix: str) -> None:
        """Rename entries of torch's parametrization in a state dict, and add vectors to a weight without them."""
        if not self.spectral:
            return
        for old, new in (("original", "weight"), ("0._u", "u"), ("0._v", "v")):
            if f"{prefix}{OLD}{old}" in state_dict:
                state_dict[f"{prefix}{new}"] = state_dict.pop(f"{prefix}{OLD}{old}")
        weight, keys = state_dict.get(f"{prefix}weight"), (f"{prefix}u", f"{prefix}v")
        if isinstance(weight, Tensor) and weight.dim() == 2 and not all(key in state_dict for key in keys):
            for key, vector in zip(keys, singular_vectors(weight), strict=True):
                state_dict[key] = vector.to(self.u.dtype)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", spectral=True" if self.spectral else "")

    @torch.no_grad()
    def leading(self) -> Spectral:
        """sigma, u and v as a forward takes them: in training after one iteration of the power method, not yet kept.

        Compiled code computes them, for a weight in fp32 or fp64 on the CPU.
        """
        self.require_filled()
        weight = self.weight.contiguous()
        u, v = (vector.to(weight.dtype).contiguous() for vector in (self.u, self.v))
        return leading(weight, u, v, TINY, self.training)

    def keep(self, spectral: Spectral) -> None:
        """Store the vectors of `leading` for the next forward."""
        self.u.copy_(spectral.u)
        self.v.copy_(spectral.v)

    def _sigma(self, weight: Tensor) -> Tensor:
        self.require_filled()
        if not self.training:  # copies, since a later training forward writes u and v before this one's backward
            return _quotient(weight, self.u.clone(), self.v.clone())
        with torch.no_grad():
            u = _unit(torch.mv(weight, self.v.to(weight.dtype)))
            self.u.copy_(u)
        row = torch.mv(weight.t(), u)
        # v := row / |row| makes u^T W v = |row|; the gradient, u v^T, is equal, too.
        sigma = torch.linalg.vector_norm(row)
        with torch.no_grad():
            self.v.copy_(row / sigma.clamp_min(TINY))
        return sigma

    @torch.no_grad()
    def _make_vectors(self) -> None:
        if self.weight.is_meta:
            return
        if hasattr(self.weight, "full_tensor"):  # a sharded weight: the vectors are equal on all ranks
            u, v = singular_vectors(self.weight)
        else:
            weight = self.weight.to(self.u.dtype)
            u, v = (_unit(torch.empty_like(t).normal_()) for t in (self.u, self.v))
            for _ in range(ITERATIONS):
                u = _unit(torch.mv(weight, v))
                v = _unit(torch.mv(weight.t(), u))
        self.u.copy_(u)
        self.v.copy_(v)


def singular_vectors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The leading left and right singular vectors of a matrix, in fp64."""
    u, _, vh = torch.linalg.svd(whole(weight.detach()).double(), full_matrices=False)
    return u[:, 0], vh[0]


def _unit(vector: Tensor) -> Tensor:
    return vector / torch.linalg.vector_norm(vector).clamp_min(TINY)


def _quotient(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.dot(u.to(weight.dtype), torch.mv(weight, v.to(weight.dtype)))


def _rename_to_ours(module: CriticLinear, state_dict, prefix, *_) -> None:
    module.rename_to_ours(state_dict, prefix)
