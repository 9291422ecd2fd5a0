"""State dicts of the losses: RepDistiller's names and those of earlier versions, and states that do not fit.

Everything here works on the copy of the state dict that a load has made, before any entry is copied into a module.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops.sampling.spec import ALL, TABLES
from .row_buffer import RowBuffer

if TYPE_CHECKING:
    from .contrast import Contrast, ContrastiveLoss
    from .sampler import NegativeSampler

BANKS = ("memory_v1", "memory_v2")
SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def repdistiller_params(contrast: Contrast) -> Tensor:
    """RepDistiller's `params` = [K, T, Z1, Z2, momentum], fp32; negative Z = unset, others clamped to fp32's range."""
    z = contrast.log_z.detach().double().exp().clamp(SMALLEST, LARGEST).nan_to_num(-1.0)
    params = torch.zeros(5, dtype=torch.float64, device=z.device)
    params[0], params[1], params[4] = contrast.sampler.k, contrast.temperature, contrast.memory_v1.momentum
    params[2:4] = z
    return params.float()


def rename_to_ours(contrast: Contrast, state_dict, prefix: str) -> list[str]:
    """Rename RepDistiller's and earlier versions' entries in place; return sentences on other values in `params`."""
    for name in BANKS:
        if f"{prefix}{name}" in state_dict:
            state_dict.setdefault(f"{prefix}{name}.rows", state_dict.pop(f"{prefix}{name}"))
    misfits: list[str] = []
    params = state_dict.pop(f"{prefix}params", None)
    if isinstance(params, Tensor) and params.shape == (5,):
        k, temperature, z1, z2, momentum = params.double().tolist()
        z = torch.tensor([z1, z2], device=contrast.log_z.device, dtype=contrast.log_z.dtype)
        state_dict.setdefault(f"{prefix}log_z", torch.where(z < 0, math.nan, z.clamp(SMALLEST, LARGEST).log()))
        misfits = _other_options(
            contrast, state_dict, prefix, {"k": k, "temperature": temperature, "momentum": momentum}
        )
    for name in ("made_with", "sampler.made_with", "sampler.state"):
        state_dict.setdefault(f"{prefix}{name}", contrast.get_buffer(name))
    return misfits


def replace_misfits_of_loss(loss: ContrastiveLoss, state_dict, prefix: str) -> list[str]:
    """Replace entries of a loss's state dict that do not fit by the loss's own; return sentences on them."""
    misfits = []
    for name, module in loss.named_modules():
        if name and name.split(".")[0] != "contrast":
            misfits += _replace_other_sizes(module, state_dict, f"{prefix}{name}.")
    if loss.contrast is not None:
        misfits += replace_misfits(loss.contrast, state_dict, f"{prefix}contrast.")
    return misfits


def replace_misfits(contrast: Contrast, state_dict, prefix: str) -> list[str]:
    """`replace_misfits_of_loss` for banks, log Z and sampler. Banks of other sizes replace log Z, too."""
    misfits = rename_to_ours(contrast, state_dict, prefix)
    sizes = []
    for name in BANKS:
        sizes += _replace_other_sizes(getattr(contrast, name), state_dict, f"{prefix}{name}.")
    if sizes:
        for name in (*(f"{n}.rows" for n in BANKS), "log_z"):
            state_dict[f"{prefix}{name}"] = contrast.get_buffer(name)
        misfits += sizes
    facts = contrast.record.differences(state_dict[f"{prefix}made_with"])
    state_dict[f"{prefix}made_with"] = contrast.record.tensor(contrast.made_with.device)
    misfits += _other_options(contrast, state_dict, prefix, facts)
    return misfits + replace_record(contrast.sampler, state_dict, f"{prefix}sampler.")


def replace_record(sampler: NegativeSampler, state_dict, prefix: str) -> list[str]:
    """Replace the sampler's record in the state dict by its own; return sentences on the differences."""
    key = f"{prefix}made_with"
    facts = sampler.record.differences(state_dict.get(key))
    state_dict[key] = sampler.record.tensor(sampler.made_with.device)
    own = sampler.record.facts
    message = []
    if "num_data" in facts:
        message.append(f"num_data = {facts['num_data']}, here {own['num_data']}")
    if "k" in facts:
        loaded, ours = ("all" if v == ALL else v for v in (facts["k"], own["k"]))
        message.append(f"K = {loaded}, this loss has {ours}")
    if "source" in facts:
        loaded, ours = (list(TABLES)[int(v)] for v in (facts["source"], own["source"]))
        message.append(f"exclude = {loaded!r}, here {ours!r}: it drew other negatives")
    elif "tables" in facts and "num_data" not in facts:
        table = "weights" if sampler.source == "weighted" else "labels"
        message.append(f"other {table}: it drew other negatives")
    if "replacement" in facts:
        message.append("another rule of replacement: it drew other negatives")
    if "expected" in facts:
        message.append(f"expected = {bool(facts['expected'])}, here {bool(own['expected'])}")
    return [f"{prefix}made_with: the state dict was made with {s}" for s in message]


def _other_options(contrast: Contrast, state_dict, prefix: str, facts) -> list[str]:
    """Sentences on K, temperature and momentum of a state; replace log Z of another temperature."""
    own = {"k": contrast.sampler.k, "temperature": contrast.temperature, "momentum": contrast.memory_v1.momentum}
    misfits = []
    for name, value in facts.items():
        if math.isclose(own[name], value, rel_tol=1e-5):
            continue
        label = "K" if name == "k" else name
        loaded, ours = ("all" if v == ALL and name == "k" else f"{v:g}" for v in (value, own[name]))
        misfits.append(f"{prefix}{name}: the state dict was made with {label} = {loaded}, this loss has {ours}")
        if name == "temperature":
            state_dict[f"{prefix}log_z"] = contrast.log_z
    return misfits


def _replace_other_sizes(module, state_dict, prefix: str) -> list[str]:
    misfits, rows = [], state_dict.get(f"{prefix}rows")
    if isinstance(module, RowBuffer) and isinstance(rows, Tensor):
        state_dict[f"{prefix}rows"] = module.own_rows(rows)
    for name, own in {**module._parameters, **module._buffers}.items():
        loaded = state_dict.get(f"{prefix}{name}")
        if own is not None and isinstance(loaded, Tensor) and loaded.shape != own.shape:
            state_dict[f"{prefix}{name}"] = own.detach()
            misfits.append(f"size mismatch for {prefix}{name}: {list(loaded.shape)} there, {list(own.shape)} here")
    if misfits and getattr(module, "keeps_own_state", False):  # rows of a queue and their count belong together
        state_dict.update({f"{prefix}{name}": own for name, own in module.named_buffers(recurse=False)})
    return misfits
