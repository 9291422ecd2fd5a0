"""The moving average of a student's weights and buffers over the optimiser's steps."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """A copy of `network` that follows it: after each step, average = decay * average + (1 - decay) * network.

    In the first steps the decay is smaller, (1 + steps) / (10 + steps), so that the initial weights are soon
    forgotten. Values that are not floating-point, such as counts of batches, are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._source = network
        self._look_up()

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's current values."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        if any(module._buffers.get(name) is not held for module, name, held in self._buffers):
            self._look_up()  # the network has put another tensor in the place of a buffer
        torch._foreach_lerp_(self._target[0], self._from[0], 1 - decay)
        if self._target[1]:
            torch._foreach_copy_(self._target[1], self._from[1])

    def _look_up(self) -> None:
        """List the tensors of both networks in pairs; a buffer that is new, or of another size, is copied."""
        for own, averaged in zip(self._source.modules(), self.network.modules(), strict=True):
            for name, buffer in own._buffers.items():
                held = averaged._buffers.get(name)
                if buffer is None:
                    averaged._buffers[name] = None
                elif held is None or held.shape != buffer.shape or held.dtype != buffer.dtype:
                    averaged._buffers[name] = buffer.detach().clone()
        self._from, self._target = _values(self._source), _values(self.network)
        self._buffers = [
            (module, name, buffer)
            for network in (self._source, self.network)
            for module in network.modules()
            for name, buffer in module._buffers.items()
        ]

    def state_dict(self) -> dict[str, object]:
        """Weights, buffers and the number of steps."""
        return {"steps": self.steps, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a `state_dict()`."""
        self.steps = state["steps"]
        self.network.load_state_dict(state["network"])


def _values(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The floating tensors of a network's state dict, and the others."""
    every = [v for v in network.state_dict(keep_vars=True).values() if isinstance(v, Tensor)]
    values = list({id(v): v for v in every}.values())  # tied weights are one tensor under several names
    return [v for v in values if v.is_floating_point()], [v for v in values if not v.is_floating_point()]
