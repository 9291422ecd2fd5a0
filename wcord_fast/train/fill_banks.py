"""Banks filled before training: one pass of both networks over the training images."""

from __future__ import annotations

import logging

import torch
from torch import nn

from ..distill.eval_mode import eval_mode
from ..ops.status import check
from .evaluation import autocast
from .network_calls import plain

log = logging.getLogger(__name__)


@torch.no_grad()
def fill_banks(run, teacher: nn.Module) -> None:
    """Fill every bank row of `run.method` with the features of its image, not augmented, in eval mode.

    No random numbers are drawn, so the training batches do not depend on the filling. With several processes each one
    passes a part of the images; the banks equal those of one process.
    """
    device, precision = run.train.device, run.recipe["precision"]
    student, teacher_outputs = plain(run.student), plain(teacher)
    with eval_mode(run.student), eval_mode(run.method):
        for images, _, index in run.train.once():
            with autocast(device, precision):
                run.method.fill_banks(student(images), teacher_outputs(images), index)
        run.method.banks_filled()
    check()
    log.info("%-10s has seen the features of %d images before training", run.name, run.train.images)
