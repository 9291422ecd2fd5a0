"""The state of a loss that DistributedDataParallel must not broadcast: ranks keep it equal, or separate."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def own_state(module: nn.Module) -> list[str]:
    """Names within `module` of its losses', banks' and samplers' buffers, which must not be broadcast or averaged.

    These modules have the attribute `keeps_own_state` = True.
    """
    result = []
    for prefix, child in module.named_modules():
        if getattr(child, "keeps_own_state", False) is True:
            result += [f"{prefix}.{name}" if prefix else name for name, _ in child.named_buffers(recurse=False)]
    return result


def exclude_state(model: nn.Module) -> nn.Module:
    """Mark `model`, so that DDP does not change the state of this library's losses in it; call it before DDP.

    A loss that is wrapped itself needs no mark.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, own_state(model))
    return model
