"""The embedded digits, and `load` by name."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from wcord_fast import data

FIRST_TEST_LABELS = [5, 9, 2, 4, 6, 7, 9, 3, 4, 6, 8, 5, 0, 2, 1, 3, 7, 3, 9, 9]


def test_split_is_fixed_stratified_and_complete():
    digits = data.load("digits", image_size=8)
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.classes == tuple("0123456789")
    assert not digits.flip
    for labels, n in ((digits.train_labels, 1437), (digits.test_labels, 360)):
        fraction = torch.bincount(labels).numpy() / n
        np.testing.assert_allclose(fraction, np.bincount(load_digits().target) / 1797, atol=1 / n)

    def rows(images, labels):
        return sorted(map(tuple, np.column_stack([images.reshape(len(labels), -1), labels]).tolist()))

    original = load_digits()
    everything = rows((original.images * 255 / 16).round().astype(int), original.target)
    ours = rows(
        torch.cat([digits.train_images, digits.test_images]),
        torch.cat([digits.train_labels, digits.test_labels]),
    )
    assert ours == everything
    # Which rows are for testing must never change: results would no longer compare.
    assert digits.test_labels[:20].tolist() == FIRST_TEST_LABELS


def test_sizes():
    digits = data.load("Digits")
    assert digits.image_size == (16, 16)
    assert digits.padding == 2
    small = data.load("digits", image_size=8)
    assert torch.equal(small.train_labels, digits.train_labels)
    pooled = torch.nn.functional.avg_pool2d(digits.train_images.float(), 2)
    both = torch.stack([pooled.flatten(), small.train_images.flatten().float()])
    assert torch.corrcoef(both)[0, 1] > 0.95  # these pictures, enlarged
    with pytest.raises(ValueError, match="image_size"):
        data.load("digits", image_size=7)


def test_statistics_normalise_the_training_set():
    digits = data.load("digits")
    whole = torch.cat([b[0] for b in data.TrainBatches(digits, 500, seed=0, padding=0).epoch(0)])
    assert whole.mean().abs() < 1e-5
    assert (whole.std(correction=0) - 1).abs() < 1e-5


def test_limit_train_by_name():
    digits = data.load("digits", limit_train=200)
    assert len(digits.train_labels) == 200
    assert torch.bincount(digits.train_labels).min() >= 19
    assert len(digits.test_labels) == 360


def test_names():
    assert data.names()[0] == "digits" and {"cifar10", "cifar100", "folder", "imagenet"} <= set(data.names())
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        data.load("digit")
    with pytest.raises(TypeError, match="name"):
        data.load(None)
    with pytest.raises(ValueError, match="data_dir"):
        data.load("folder")
    with pytest.raises(ValueError, match="image_size"):
        data.load("cifar100", image_size=16)
    assert "imagenet" not in data.held_names() and "folder" in data.held_names()
