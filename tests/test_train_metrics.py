"""The area under the ROC curve, against counting pairs."""

import pytest
import torch

from wcord_fast.train.metrics import auc


def pairs_in_order(scores, positive):
    """The share of (positive, negative) pairs in which the positive scores higher; ties are half."""
    gap = scores[positive][:, None] - scores[~positive][None]
    return 100 * ((gap > 0).double() + 0.5 * (gap == 0)).mean().item()


def test_auc_of_two_classes_counts_ordered_pairs():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 5 // 4  # one in five
    logits = torch.randn(60, 2, generator=g).round(decimals=1)
    logits[:, 1] += labels
    want = pairs_in_order(logits.double()[:, 1] - logits.double()[:, 0], labels == 1)
    assert auc(logits, labels) == pytest.approx(want, abs=1e-9) and 60 < want < 99
    assert auc(-logits, labels) == pytest.approx(100 - want, abs=1e-9)


def test_saturated_probabilities_keep_their_order():
    """Softmax in float32 would tie all of these at 1."""
    logits = torch.tensor([[0.0, 40.0], [0.0, 50.0], [0.0, 60.0], [0.0, 70.0]])
    assert auc(logits, torch.tensor([0, 0, 1, 1])) == 100


def test_auc_of_several_classes_averages_one_against_rest():
    g = torch.Generator().manual_seed(1)
    labels = torch.arange(30) % 3
    logits = torch.randn(30, 3, generator=g) + 0.7 * torch.eye(3)[labels]
    fraction = logits.double().softmax(1)
    want = sum(pairs_in_order(fraction[:, c], labels == c) for c in range(3)) / 3
    assert auc(logits, labels) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), "no image of class 1"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), r"expected 0 .. 1, got 2"),
        (torch.full((2, 2), torch.nan), torch.tensor([0, 1]), "NaN or infinite"),
        (torch.zeros(2, 1), torch.tensor([0, 1]), "at least 2 classes"),
        (torch.zeros(2, 2), torch.tensor([0, 1, 1]), r"labels: expected shape \[2\]"),
    ],
)
def test_bad_inputs_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        auc(logits, labels)
