"""Batches: every row once per epoch, a function of (seed, epoch) alone, resumable, right statistics, clear errors."""

import dataclasses
import itertools
import weakref

import numpy as np
import pytest
import torch

from wcord_fast import data, distill
from wcord_fast.data.dataset import channel_statistics
from wcord_fast.data.parts import Parts


def small(n=23, size=8, channels=1, **changes):
    """Image n is all n + 1, but for a bright pixel at its upper left, which shows how it was moved."""
    images = torch.arange(1, n + 1, dtype=torch.uint8)[:, None, None, None].expand(n, channels, size, size).clone()
    images[:, :, 0, 0] = 255
    record = data.Dataset(
        name="small",
        train_images=images,
        train_labels=torch.arange(n) % 3,
        test_images=images[:7],
        test_labels=torch.arange(7) % 3,
        classes=("a", "b", "c"),
        mean=(0.25,) * channels,
        std=(0.5,) * channels,
        padding=2,
    )
    return dataclasses.replace(record, **changes)


def pixels(images):
    """The bytes that a normalised batch came from."""
    return ((images * 0.5 + 0.25) * 255).round().to(torch.uint8)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_an_epoch_has_every_row_once(drop_last, sizes):
    train = data.TrainBatches(small(), 5, seed=3, drop_last=drop_last)
    batches = list(train.epoch(0))
    assert [len(b[2]) for b in batches] == sizes
    assert len(train) == len(sizes)
    index = torch.cat([b[2] for b in batches])
    assert index.dtype == torch.int64
    assert len(index.unique()) == len(index)
    assert index.tolist() != sorted(index.tolist())
    for images, labels, rows in batches:
        assert images.shape == (len(rows), 1, 8, 8)
        assert torch.equal(labels, small().train_labels[rows])
        assert torch.equal(pixels(images)[:, 0, 4, 4], (rows + 1).to(torch.uint8))  # the image is that row's


def test_batch_has_images_labels_and_index():
    assert distill.Batch is data.Batch
    for batch in (next(data.TrainBatches(small(), 5, seed=0).epoch(0)), next(iter(data.TestBatches(small(), 5)))):
        images, labels, index = batch
        assert type(batch) is data.Batch
        assert batch.images is images and batch.labels is labels and batch.index is index


def test_loader_keeps_no_reference_to_a_batch():
    """Neither epoch nor generator keeps a batch that the caller has dropped, even while it uses the next."""
    for batches in (data.TrainBatches(small(), 5, seed=0).epoch(0), iter(data.TestBatches(small(), 2))):
        seen = []
        for batch in batches:
            seen.append(weakref.ref(batch.images))
            del batch
            assert [ref() for ref in seen] == [None] * len(seen)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_no_rank_gets_a_single_image(world, drop_last):
    """Every image in one batch (but those that drop_last drops), every part of two images at least where it can be."""
    for n, size in itertools.product(range(1, 70), (1, 2, 3, 8, 16, 21)):
        try:
            parts = [Parts(n, size, (rank, world), drop_last) for rank in range(world)]
        except ValueError as error:
            assert size < world or n < (size if drop_last else world), error
            continue
        rows = [[p.rows(i) for i in range(len(p))] for p in parts]
        joined = [i for batch in zip(*rows, strict=True) for at in batch for i in range(at.start, at.stop)]
        assert joined == list(range(n - n % size if drop_last else n))
        sizes = [[at.stop - at.start for at in batch] for batch in zip(*rows, strict=True)]
        assert [sum(s) for s in sizes] == [parts[0].size(i) for i in range(len(sizes))]
        assert all(sum(s) == size for s in sizes[:-1]) and sum(sizes[-1]) < size + 2 * world
        if size >= 2 * world and n >= 2 * world:
            assert min(map(min, sizes)) >= 2
        for i, s in enumerate(sizes):
            assert [p.weight(i) for p in parts] == pytest.approx([world * own / sum(s) for own in s])
        assert parts[-1].whole().rows(0).start == 0 and parts[-1].whole().world == 1


def test_the_last_image_joins_the_batch_before():
    record = small()
    train = data.TrainBatches(record, 11, seed=0)
    batches = list(train.epoch(3))
    assert [len(b.index) for b in batches] == [11, 12] and len(train) == 2
    assert sorted(torch.cat([b.index for b in batches]).tolist()) == list(range(23))
    norm = torch.nn.BatchNorm1d(64)
    for batch in batches:
        norm(batch.images.flatten(1))  # which one image alone does not allow
    later = list(train.epoch(3, start=1))
    assert all(torch.equal(a, b) for a, b in zip(later[0], batches[1], strict=True)) and len(later) == 1
    assert [len(b.index) for b in data.TestBatches(record, 6)] == [6, 1]  # no statistics are taken there


def test_plain_images_without_augmentation():
    record = small()
    for images, _, rows in data.TrainBatches(record, 5, seed=0, padding=0, flip=False).epoch(0):
        assert torch.equal(pixels(images), record.train_images[rows])


def test_batches_depend_only_on_seed_and_epoch():
    def run(seed, epoch, **options):
        torch.manual_seed(len(options))  # torch's own generator has no say
        return [torch.cat(part) for part in zip(*data.TrainBatches(small(), 5, seed=seed).epoch(epoch), strict=True)]

    first, again = run(1, 4), run(1, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (run(2, 4), run(1, 5), run(4, 1)):
        assert not torch.equal(first[2], other[2])


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_loader_resumes_in_mid_epoch(start):
    train = data.TrainBatches(small(), 5, seed=1)
    whole, rest = list(train.epoch(2)), list(train.epoch(2, start=start))
    assert len(rest) == 5 - start
    for a, b in zip(whole[start:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_shuffle_and_moves_do_not_depend_on_the_batch_size():
    parts = [
        [torch.cat(part) for part in zip(*data.TrainBatches(small(), size, seed=1).epoch(0), strict=True)]
        for size in (4, 23)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*parts, strict=True))


def test_moves_and_order_are_uniform():
    """Chi-square of the 5 x 5 shifts x 2 mirrors, read off the bright pixel of each image, and of row against place."""
    n, size, epochs = 250, 12, 40
    images = torch.ones(n, 1, size, size, dtype=torch.uint8)
    images[:, :, 4, 2] = 255  # moved, it lies in rows 2 .. 6 and columns 0 .. 4, or 7 .. 11 when mirrored
    record = small(n, train_images=images, train_labels=torch.zeros(n, dtype=torch.int64), test_images=images[:7])
    train = data.TrainBatches(record, 50, seed=11, padding=2, flip=True)
    moves, places = np.zeros((size, size)), np.zeros((10, 10))
    for epoch in range(epochs):
        moved, _, rows = (torch.cat(part) for part in zip(*train.epoch(epoch), strict=True))
        moves += (pixels(moved) == 255).sum((0, 1)).numpy()
        np.add.at(places, (rows.numpy() // 25, np.arange(n) // 25), 1)
    seen = moves[2:7][:, [*range(5), *range(7, 12)]]
    assert seen.sum() == moves.sum() == n * epochs
    assert chi_square(seen) < 95  # 49 degrees of freedom: 99.99 % lie below
    assert chi_square(places) < 140  # 81 degrees of freedom


def chi_square(counts):
    return ((counts - counts.mean()) ** 2 / counts.mean()).sum()


def test_loader_defaults_come_from_the_data_set():
    record = small(flip=False, padding=1)
    train = data.TrainBatches(record, 5, seed=0)
    assert (train.flip, train.padding) == (False, 1)
    train = data.TrainBatches(record, 5, seed=0, padding=3, flip=True)
    assert (train.flip, train.padding) == (True, 3)


def test_dtype_and_memory_format():
    record = small(channels=3)
    for batches in (
        data.TrainBatches(record, 5, seed=0, dtype=torch.bfloat16, channels_last=True).epoch(0),
        data.TestBatches(record, 5, dtype=torch.bfloat16, channels_last=True),
    ):
        images = next(iter(batches))[0]
        assert images.dtype == torch.bfloat16
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_test_batches():
    record = small()
    batches = data.TestBatches(record, 3)
    actual = list(batches)
    assert len(batches) == len(actual) == 3
    assert torch.equal(torch.cat([pixels(b[0]) for b in actual]), record.test_images)
    assert torch.equal(torch.cat([b[1] for b in actual]), record.test_labels)
    assert torch.cat([b[2] for b in actual]).tolist() == list(range(7))
    assert list(map(len, (b[1] for b in actual))) == [3, 3, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_the_gpu_equal_those_on_the_cpu():
    for here, there in zip(
        data.TrainBatches(small(), 5, seed=1).epoch(1),
        data.TrainBatches(small().to("cuda"), 5, seed=1).epoch(1),
        strict=True,
    ):
        assert there[0].device.type == "cuda"
        for a, b in zip(here, there, strict=True):
            torch.testing.assert_close(b.cpu(), a, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": 5, "seed": -1}, ValueError, "seed"),
        ({"batch_size": 5, "seed": 0.5}, TypeError, "seed"),
        ({"batch_size": 5, "padding": -1}, ValueError, "padding"),
        ({"batch_size": 5, "dtype": torch.int64}, ValueError, "dtype"),
        ({"batch_size": 24, "drop_last": True}, ValueError, "no batch of 23"),
        ({"batch_size": 5, "drop_last": "no"}, TypeError, "drop_last: expected True or False, got 'no'"),
        ({"batch_size": 5, "flip": "no"}, TypeError, "flip: expected True or False, got 'no'"),
        ({"batch_size": 5, "channels_last": "no"}, TypeError, "channels_last: expected True or False, got 'no'"),
        ({"batch_size": 5, "part": (2, 2)}, ValueError, r"part: expected .* rank below world, got \(2, 2\)"),
        ({"batch_size": 5, "part": (0, 0)}, ValueError, r"part: .*got \(0, 0\)"),
        ({"batch_size": 5, "part": (-1, 2)}, ValueError, "part: .*got -1"),
        ({"batch_size": 5, "part": 3}, TypeError, r"part: expected \(rank, world\), got 3"),
        ({"batch_size": 5, "part": "ab"}, TypeError, r"part: expected \(rank, world\), got 'ab'"),
        ({"batch_size": 5, "transforms": 3}, TypeError, "transforms: expected a str, got int"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        data.TrainBatches(small(), **{"seed": 0, **options})


def test_wrong_epoch_is_refused_at_the_call():
    train = data.TrainBatches(small(), 5, seed=0)
    with pytest.raises(ValueError, match="epoch"):
        train.epoch(-1)
    with pytest.raises(ValueError, match="start: expected at most 5"):
        train.epoch(0, start=6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train_images": torch.zeros(23, 1, 8, 8)}, TypeError, "train_images"),
        ({"test_images": torch.zeros(7, 1, 8, 9, dtype=torch.uint8)}, ValueError, "test_images"),
        ({"train_labels": torch.zeros(22, dtype=torch.int64)}, ValueError, "train_labels"),
        ({"train_labels": torch.full((23,), 3)}, ValueError, "train_labels: expected 0 .. 2, got 3"),
        ({"test_labels": torch.full((7,), -1)}, ValueError, "test_labels"),
        ({"mean": (0.5, 0.5)}, ValueError, "mean, std"),
        ({"mean": 0.5}, ValueError, "mean, std"),
        ({"mean": (float("nan"),)}, ValueError, "mean: expected a number that is finite"),
        ({"padding": -1}, ValueError, "padding: expected an int of at least 0, got -1"),
        ({"flip": "no"}, TypeError, "flip: expected True or False, got 'no'"),
        ({"std": (0.0,)}, ValueError, "std"),
    ],
)
def test_wrong_records(changes, error, message):
    with pytest.raises(error, match=message):
        small(**changes)


@pytest.mark.parametrize("n", [3, 10, 23])
def test_limit_train(n):
    record = small()
    limited = record.limit_train(n)
    assert len(limited.train_labels) == n
    counts, before = (torch.bincount(d.train_labels, minlength=3) for d in (limited, record))
    assert ((counts - before * n / 23).abs() < 1).all()
    assert torch.equal(limited.train_images, record.limit_train(n).train_images)
    rows = limited.train_images[:, 0, 4, 4].long() - 1  # which images they are
    assert torch.equal(limited.train_labels, record.train_labels[rows])
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert limited.test_images is record.test_images


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (24, ValueError), (2.5, TypeError)])
def test_wrong_limit(n, error):
    with pytest.raises(error, match="limit_train"):
        small().limit_train(n)


def test_channel_statistics():
    images = torch.randint(0, 256, (9, 3, 4, 5), dtype=torch.uint8)
    images[:, 2] = 51
    scaled = images.double() / 255
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], scaled.std((0, 2, 3), correction=0)[:2], rtol=1e-12)
    assert std[2] == 1.0
