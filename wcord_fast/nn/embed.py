"""The critic's embeddings: flatten, Linear, divide by the norm."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from ..ops.status import Code
from .linear import CriticLinear

NORMS = ("sphere", "ball")


class Embed(nn.Module):
    """z = W flatten(f) + b, then z / |z| ("sphere") or z / max(1, |z|) ("ball"), in fp32 (fp64 for fp64 weights).

    Args:
        in_dim: width of the flattened features.
        out_dim: D, width of the embedding.
        spectral: spectrally normalise W (one power iteration per training forward), see `CriticLinear`.
        norm: "sphere" divides by the L2 norm, which cancels sigma except against the bias: spectrally normalised, but
            not 1-Lipschitz; "ball" is 1-Lipschitz in each argument of g = <e_T, e_S>.

    State dicts of earlier versions, with torch's parametrization, load, and so do those with a plain weight.
    """

    def __init__(self, in_dim: int, out_dim: int, *, spectral: bool = False, norm: str = "sphere"):
        super().__init__()
        self.in_dim = checks.integer("in_dim", in_dim, least=1)
        self.width = checks.integer("out_dim", out_dim, least=1)
        self.norm = checks.choice("norm", norm, NORMS)
        self.linear = CriticLinear(in_dim, self.width, spectral=checks.boolean("spectral", spectral))

    def forward(self, features: Tensor, frozen_too: bool = False) -> Any:
        """[B, ...] -> [B, D]; with `frozen_too` a pair, the second without gradient to weight and bias."""
        with autocast_off(features.device):
            result = self.linear(features.flatten(1), frozen_too)
            return tuple(map(self._normed, result)) if frozen_too else self._normed(result)

    @torch.no_grad()
    def frozen(self, features: Tensor) -> Tensor:
        """The embedding of eval mode, without gradient, in any mode."""
        with autocast_off(features.device):
            weight, bias = self.linear.frozen()
            return self._normed(nn.functional.linear(features.flatten(1).to(weight.dtype), weight, bias))

    def frozen_weight(self) -> Tensor:
        """W (over sigma) as it is, detached, without a power iteration."""
        return self.linear.frozen()[0]

    def reset_parameters(self) -> None:
        """Initialise as the constructor does, from torch's default generator."""
        self.linear.reset_parameters()

    def _normed(self, z: Tensor) -> Tensor:
        # Squares in fp64: those of fp32 overflow from |z| = 2e19 on, and the embedding would be 0.
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True, dtype=torch.float64)
        return (z / length.clamp_min(1e-12 if self.norm == "sphere" else 1.0)).to(z.dtype)


def autocast_off(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast on `device`; it does nothing on meta, which has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def check_features(name: str, features: Tensor, embed: Embed, batch: int | None = None) -> Tensor:
    """`features`, checked to be [B, ...] and fit `embed`.

    On the CPU, outside a compiled graph, they must also be finite and not too large to embed (the ops check again).
    """
    width = embed.in_dim
    if not isinstance(features, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(features).__name__}")
    if features.dtype not in checks.FLOATS:
        raise TypeError(f"{name}: expected a floating dtype of 16 bits or more, got {features.dtype}")
    checks.require_dense(name, features)
    shape = list(features.shape)
    if features.dim() < 2 or features.shape[0] < 1 or features[0].numel() != width:
        raise ValueError(f"{name}: expected shape [B, {width}] (or [B, ...] with {width} values each), got {shape}")
    if batch is not None and features.shape[0] != batch:
        raise ValueError(f"{name}: expected a batch of {batch} as in the other arguments, got shape {shape}")
    if features.device.type == "cpu" and not torch.compiler.is_compiling():
        rows = features.detach().flatten(1)
        checks.finite_rows(name, rows, Code.FEATURE)
        _refuse_overflow(name, rows, embed)
    return features


def _refuse_overflow(name: str, rows: Tensor, embed: Embed) -> None:
    """ValueError naming the first of `rows` of which W row + b overflows; computed only if one might."""
    dtype = torch.promote_types(embed.linear.bias.dtype, torch.float32)
    limit = torch.finfo(dtype).max
    if float(rows.abs().max()) * embed.in_dim <= limit**0.5 or hasattr(embed.linear.weight, "full_tensor"):
        return  # a sharded weight would be gathered, and the other ranks do not look
    weight, bias = embed.linear.frozen()
    with torch.autocast("cpu", enabled=False):
        z = nn.functional.linear(rows.double(), weight.double(), bias.double())
    bad = (z.abs().amax(1) > limit) | (rows.abs().amax(1) > limit)
    if bad.any():
        row = int(bad.nonzero()[0])
        value = float(rows[row].abs().max())
        raise ValueError(f"{name}: row {row} holds values up to {value:g}; its embedding overflows {dtype}")
