"""The running mean of student and teacher features, which lckt_center="running" subtracts from both."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.ranks import gather_rows, ranks, sizes_of
from ..ops.tensors import wide_dtype
from .state import StateModule


class RunningCenter(StateModule):
    """Subtracts the running mean of the training batches from features x [n, d] and y [n, d]; it gets no gradient.

    After batch t the mean is s * (mean before) + (1 - s) * (mean of the batch), where s = min(momentum, (t - 1) / t):
    the plain average of all batches at first. A training batch is centred by the mean that it has moved already. Before
    the first training batch a batch's own mean takes its place, or zero for a single image, which is its own mean.

    In a process group the mean of a training batch is taken over the rows of all ranks, and the state is equal on all.

    Args:
        width: d.
        momentum: weight of the old mean, in [0, 1]. 1 is the average of all batches.
    """

    mean: Tensor  # [2, d]: of student and teacher; fp32, or fp64 by default dtype or after `.double()`
    steps: Tensor  # int64, the number of training batches in the mean
    keeps_own_state = True  # see distributed.ddp
    wide = ("mean",)

    def __init__(self, width: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        dtype = wide_dtype()
        self.register_buffer("mean", torch.zeros(2, width, dtype=dtype))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._moved: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor, *, moves: bool, joined: bool) -> tuple[Tensor, Tensor]:
        """Both sides, centred.

        Args:
            moves: whether this is a training batch, whose mean enters in `finish_step`. In a process group the call is
                then collective.
            joined: whether x and y already are the rows of all ranks.
        """
        with torch.no_grad():
            batch, rows = torch.stack((x.mean(0), y.mean(0))), len(x)
            if moves and not joined and ranks().world > 1:
                batch, rows = _mean_over_ranks(batch, sizes_of(rows, x.device))
            before = self.mean.to(batch.dtype)
            if moves:
                weight = (self.steps / (self.steps + 1)).clamp_max(self.momentum).to(batch.dtype)
                mean = batch.lerp(before, weight)
                self._moved = mean
            else:
                mean = torch.where(self.steps == 0, batch, before)
            if rows == 1:
                mean = torch.where(self.steps == 0, torch.zeros_like(mean), mean)
        return x - mean[0], y - mean[1]

    @torch.no_grad()
    def finish_step(self) -> None:
        """Store the mean that the last training batch has moved. A step that failed changes nothing."""
        if self._moved is not None:
            self.mean.copy_(self._moved)
            self.steps.add_(1)
            self._moved = None

    def reset_parameters(self) -> None:
        """Empty the mean."""
        self.mean.zero_()
        self.steps.zero_()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ("mean", "steps"):  # for states older than the running mean
            state_dict.setdefault(f"{prefix}{name}", torch.zeros_like(self.get_buffer(name), device="cpu"))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"width={self.mean.shape[1]}, momentum={self.momentum}"


def _mean_over_ranks(mean: Tensor, sizes: list[int]) -> tuple[Tensor, int]:
    """The mean [2, d] over the rows of all ranks, and their number, from this rank's mean and all sizes."""
    (gathered,) = gather_rows([mean.double().flatten()[None] * sizes[ranks().rank]], [1] * len(sizes))
    return (gathered.sum(0) / sum(sizes)).to(mean.dtype).view_as(mean), sum(sizes)
