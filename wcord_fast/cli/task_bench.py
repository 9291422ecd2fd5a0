"""A `Workbench` whose network sees the images through a view, and whose labels may be unknown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import distill
from ..data import Dataset
from ..train.loop import Run
from ..train.views import View, look_through
from .config import Config
from .usage import UsageError
from .workbench import Workbench, create_network


class TaskBench(Workbench):
    """The runs of one network of a task.

    Args:
        config: the recipe; `output_dir` holds the runs.
        data: `unscaled` data, on any device.
        view: the view of the images that the network gets.
        task: the task's identity, in plain values; a run of another task is not resumed.
        labelled: whether the labels are known; if not, no method gets them and no accuracy is measured.
    """

    def __init__(self, config: Config, data: Dataset, view: View, task: dict[str, Any], labelled: bool = True) -> None:
        super().__init__(config, data.to(config.torch_device))
        self.view, self.task, self.labelled = view, task, labelled

    def spec(self, role: Any, architecture: str, method: str) -> dict[str, Any]:
        return {**super().spec(role, architecture, method), "task": {**self.task, "view": self.view.name}}

    def untrained(self, architecture: str) -> nn.Module:
        """The network with the weights at which training begins."""
        return self._network(architecture)

    def _network(self, architecture: str, pretrained: bool = False) -> nn.Module:
        torch.manual_seed(self.config.seed)
        layout = self.config.channels_last
        view, data = self.view, self.data
        network = create_network(architecture, data, self.device, layout, view=view, pretrained=pretrained)
        return look_through(network, self.view)

    def _run(self, name: str, spec: dict[str, Any], network: nn.Module, teacher: nn.Module | None, export: str) -> Run:
        run = super()._run(name, spec, network, teacher, export)
        seen = self.view.see(torch.zeros(1, self.data.channels, *self.data.image_size))
        mean, std = (None if values is None else list(values) for values in (self.view.mean, self.view.std))
        run.images = {"shape": list(seen.shape[1:]), "mean": mean, "std": std, "view": self.view.name}
        if not self.labelled:
            run.test, run.labelled = None, False
        return run

    @property
    def known_labels(self) -> Tensor | None:
        return super().known_labels if self.labelled else None


def require_no_kd(methods: list[str]) -> None:
    """UsageError for a method with a KD term, which needs one label set; the networks of a task share none."""
    for name in methods:
        base, with_kd = distill.parse(name)
        if with_kd or base == "kd":
            raise UsageError(f"methods: {name!r} has a KD term, but the two networks of this task share no label set")
