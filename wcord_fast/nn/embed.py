"""The critic's embeddings: flatten, Linear, divide by the norm."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from ..ops import checks
from ..ops.status import Code

NORMS = ("sphere", "ball")


class Embed(nn.Module):
    """z = W flatten(f) + b, then z / |z| ("sphere") or z / max(1, |z|) ("ball"), in the weight's dtype (fp32).

    Args:
        in_dim: width of the flattened features.
        out_dim: D, width of the embedding.
        spectral: spectrally normalise W (one power iteration per training forward, 15 at construction).
        norm: "sphere" divides by the L2 norm, which cancels sigma except against the bias: spectrally normalised, but
            not 1-Lipschitz; "ball" is 1-Lipschitz in each argument of g = <e_T, e_S>.

    A state dict with a plain `linear.weight` loads into a spectrally normalised embedding.
    """

    def __init__(self, in_dim: int, out_dim: int, *, spectral: bool = False, norm: str = "sphere"):
        super().__init__()
        self.in_dim = checks.integer("in_dim", in_dim, least=1)
        self.norm = checks.choice("embed_norm", norm, NORMS)
        self.linear = nn.Linear(in_dim, checks.integer("feat_dim", out_dim, least=1))
        if spectral:
            spectral_norm(self.linear)
            self.register_load_state_dict_pre_hook(_plain_weight_to_spectral)

    def forward(self, features: Tensor) -> Tensor:
        """[B, ...] -> [B, D]."""
        return self.project(features, *self.weights())

    def weights(self) -> tuple[Tensor, Tensor]:
        """(W, b), to be taken once per forward: each access of a spectral W in training is a power iteration."""
        return self.linear.weight, self.linear.bias

    def frozen_weight(self) -> Tensor:
        """W as it is, detached, without a power iteration."""
        if not parametrize.is_parametrized(self.linear, "weight"):
            return self.linear.weight.detach()
        inner = cast(Any, self.linear.parametrizations).weight
        original = inner.original.detach()
        return original / torch.dot(inner[0]._u, original @ inner[0]._v)

    def project(self, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The embedding by the given weights, outside autocast."""
        with autocast_off(features.device):
            z = nn.functional.linear(features.flatten(1).to(weight.dtype), weight, bias)
            # Squares in fp64: those of fp32 overflow from |z| = 2e19 on, and the embedding would be 0.
            length = torch.linalg.vector_norm(z, dim=1, keepdim=True, dtype=torch.float64)
            return (z / length.clamp_min(1e-12 if self.norm == "sphere" else 1.0)).to(z.dtype)


def autocast_off(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast disabled on `device`; nothing on meta, which has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def check_features(name: str, features: Tensor, embed: Embed, batch: int | None = None) -> Tensor:
    """Features [B, ...] that fit `embed`.

    On the CPU outside a compiled graph also finite and not too large to embed (the ops check again).
    """
    width = embed.in_dim
    if not isinstance(features, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(features).__name__}")
    if not features.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {features.dtype}")
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
    """A ValueError naming the first of `rows` whose W row + b overflows; looked at only where it might."""
    bias = embed.linear.bias.detach()
    limit = torch.finfo(bias.dtype).max
    if float(rows.abs().max()) * embed.in_dim <= limit**0.5:
        return
    with torch.autocast("cpu", enabled=False):
        z = nn.functional.linear(rows.double(), embed.frozen_weight().double(), bias.double())
    bad = (z.abs().amax(1) > limit) | (rows.abs().amax(1) > limit)
    if bad.any():
        at = int(bad.nonzero()[0])
        value = float(rows[at].abs().max())
        raise ValueError(f"{name}: row {at} holds values up to {value:g}; its embedding overflows {bias.dtype}")


def _plain_weight_to_spectral(module, state_dict, prefix, *_):
    """Map `linear.weight` onto the parametrization's `original`, with its exact leading singular vectors."""
    plain, inner = f"{prefix}linear.weight", f"{prefix}linear.parametrizations.weight"
    if plain not in state_dict or not parametrize.is_parametrized(module.linear, "weight"):
        return
    weight = state_dict.pop(plain)
    u, _, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    state_dict[f"{inner}.original"] = weight
    state_dict[f"{inner}.0._u"] = u[:, 0].to(weight.dtype)
    state_dict[f"{inner}.0._v"] = vh[0].to(weight.dtype)
