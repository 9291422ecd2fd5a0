"""The state of a loss that DistributedDataParallel must not broadcast: ranks keep it equal, or separate."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def own_state(module: nn.Module) -> list[str]:
    """Names within `module` of the buffers of its losses, banks and samplers: not to be broadcast or averaged.

    Those are the modules that say so by an attribute `keeps_own_state` = True.
    """
    result = []
    for prefix, child in module.named_modules():
        if getattr(child, "keeps_own_state", False) is True:
            result += [f"{prefix}.{name}" if prefix else name for name, _ in child.named_buffers(recurse=False)]
    return result


def exclude_state(model: nn.Module) -> nn.Module:
    """`model`, which holds losses of this library, marked so that DDP leaves their state alone; call it before DDP.

    A loss that is wrapped itself needs no mark.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, own_state(model))
    return model
