"""Contrast against rows that are not the batch's, as a queue holds them.

There is one direction, the positives are not among the rows, and the rows get no gradient.
"""

from __future__ import annotations

import pytest
import torch

from wcord_fast.ops.contrast import autograd
from wcord_fast.ops.contrast.reference import Contrast

from .test_batch_functions import CRITICS, backend, gradients, problem  # noqa: F401


def queue_oracle(critic, anchors, positives, rows, labels, row_labels, scale, bias):
    """Losses [B] by a loop over the anchors, in the dtype of the inputs."""
    losses = []
    for i, anchor in enumerate(anchors):
        negatives = [j for j in range(len(rows)) if not (labels[i] >= 0 and labels[i] == row_labels[j])]
        positive, negative = scale * anchor @ positives[i] + bias, scale * rows[negatives] @ anchor + bias
        if critic == "infonce":
            losses.append(torch.cat([positive[None], negative]).logsumexp(0) - positive)
        else:
            losses.append(torch.nn.functional.softplus(-positive) + torch.nn.functional.softplus(negative).sum())
    return torch.stack(losses)


@pytest.mark.parametrize("sizes", [(5, 1, 3), (7, 64, 16), (70, 33, 5)])
@pytest.mark.parametrize("critic", CRITICS)
def test_values_and_gradients_equal_float64(critic, sizes, backend):  # noqa: F811
    batch, size, dim = sizes
    anchors, positives, labels, _, weight = problem(batch, dim)
    rows, _, row_labels, *_ = problem(size, dim, seed=1)
    wide = [t.double().requires_grad_() for t in (anchors, positives, torch.tensor(8.0), torch.tensor(-2.0))]
    expected = queue_oracle(critic, *wide[:2], rows.double(), labels, row_labels, *wide[2:])
    inputs = [t.requires_grad_() for t in (anchors, positives, torch.tensor(8.0), torch.tensor(-2.0))]
    contrast = Contrast(critic, *inputs[:2], rows, -1, False, *inputs[2:], labels, row_labels, None, None)
    losses = autograd.losses(contrast, backend)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=2e-6)
    leaves = 4 if critic == "sigmoid" else 2  # InfoNCE has no scale and no bias
    actual, wanted = gradients(losses, weight, *inputs[:leaves]), gradients(expected, weight.double(), *wide[:leaves])
    for a, b in zip(actual, wanted, strict=True):
        assert (a - b).norm() <= 1e-6 + 1e-5 * b.norm()


@pytest.mark.parametrize("critic", CRITICS)
def test_anchor_without_negatives_keeps_its_positive_term(critic, backend):  # noqa: F811
    anchors, positives, *_ = problem(3, 4)
    labels, row_labels = torch.zeros(3, dtype=torch.long), torch.zeros(9, dtype=torch.long)
    scalars = torch.tensor(8.0), torch.tensor(-2.0)
    c = Contrast(critic, anchors, positives, anchors.repeat(3, 1), -1, False, *scalars, labels, row_labels, None, None)
    own = (anchors * positives).sum(1) * 8.0 - 2.0
    expected = torch.zeros(3) if critic == "infonce" else torch.nn.functional.softplus(-own)
    torch.testing.assert_close(autograd.losses(c, backend), expected)
