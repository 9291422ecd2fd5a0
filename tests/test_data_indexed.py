"""`data.Indexed`: row numbers for any data set, and where it finds labels without reading an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from wcord_fast.data import Indexed

LABELS = [2, 0, 1, 2, 1]


class Folder:
    """Like torchvision's: `targets` beside images that are expensive to read."""

    def __init__(self, targets, name="targets", read=True):
        setattr(self, name, targets)
        self.read = read

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, row):
        assert self.read, "an image was read"
        return torch.full((1, 2, 2), float(row)), LABELS[row]


class HuggingFace:
    """The part of `datasets.Dataset` that is used: mappings as items, and columns that a transform would spoil."""

    column_names = ["image", "fine_label", "caption"]  # noqa: RUF012

    def __init__(self, transformed=True):
        self.transformed = transformed

    def __len__(self):
        return len(LABELS)

    def with_format(self, kind):
        assert kind == "numpy"
        return HuggingFace(transformed=False)

    def __getitem__(self, key):
        if isinstance(key, str):
            assert not self.transformed, "the column's images would be read"
            return np.array({"fine_label": LABELS, "image": [[0.0]] * 5}[key])
        return {"image": torch.full((1, 2, 2), float(key)), "fine_label": LABELS[key], "caption": "a digit"}


def test_a_loader_gives_images_labels_and_rows():
    loader = DataLoader(Indexed(Folder(LABELS)), batch_size=2, shuffle=True)
    seen = torch.cat([index for _, _, index in loader])
    assert seen.dtype == torch.int64 and sorted(seen.tolist()) == [0, 1, 2, 3, 4]
    for images, labels, index in loader:
        assert images[:, 0, 0, 0].tolist() == index.tolist() and labels.tolist() == [LABELS[i] for i in index]


@pytest.mark.parametrize("labels", [LABELS, np.array(LABELS, dtype=np.uint8), torch.tensor(LABELS, dtype=torch.int32)])
@pytest.mark.parametrize("name", ["targets", "labels"])
def test_labels_are_read_without_decoding_an_image(name, labels):
    actual = Indexed(Folder(labels, name, read=False)).labels
    assert actual.dtype == torch.int64 and actual.tolist() == LABELS


def test_labels_of_tensors_subsets_and_joined_sets():
    tensors = TensorDataset(torch.zeros(5, 1), torch.tensor(LABELS))
    assert Indexed(tensors).labels.tolist() == LABELS
    assert Indexed(Subset(tensors, [3, 1])).labels.tolist() == [2, 0]
    assert Indexed(ConcatDataset([tensors, Subset(tensors, [1])])).labels.tolist() == [*LABELS, 0]
    assert Indexed(Indexed(Folder(LABELS, read=False)), labels=LABELS).labels.tolist() == LABELS
    assert Indexed(ConcatDataset([tensors, Folder(None)])).labels is None


def test_a_hugging_face_set():
    actual = Indexed(HuggingFace(), transform=lambda image: image + 1)
    assert actual.labels.tolist() == LABELS
    image, label, row = actual[-1]
    assert (float(image[0, 0, 0]), label, row) == (5.0, 1, 4)
    other = Indexed(HuggingFace(), image="caption", label="image")
    assert other.labels is None and other[0][0] == "a digit"


@pytest.mark.parametrize("unknown", [None, [0.5] * 5, [[1, 2]] * 5, [[1], [1, 2], [], [3], [4]], LABELS[:3]])
def test_attributes_that_are_no_label_per_row_are_ignored(unknown):
    assert Indexed(Folder(unknown)).labels is None


def test_given_labels_win_and_must_fit():
    assert Indexed(Folder(LABELS), labels=[0, 0, 0, 0, 1]).labels.tolist() == [0, 0, 0, 0, 1]
    for bad in (LABELS[:3], [0.5] * 5, np.zeros((5, 2), dtype=int)):
        with pytest.raises(ValueError, match="labels: expected 5 integers"):
            Indexed(Folder(LABELS), labels=bad)


def test_object_without_rows_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    for dataset in (Stream(), iter([1])):
        with pytest.raises(TypeError, match="dataset: expected one with len"):
            Indexed(dataset)
    with pytest.raises(IndexError, match="row: expected one of 5, got 5"):
        Indexed(Folder(LABELS))[5]


def test_an_item_that_holds_no_pair_is_refused():
    with pytest.raises(ValueError, match=r"dataset: expected items \(image, label\).*Tensor \[2\] of float32"):
        Indexed(torch.zeros(3, 2))[0]
    with pytest.raises(ValueError, match="tuple of 3"):
        Indexed(TensorDataset(*[torch.zeros(3)] * 3))[0]
    with pytest.raises(ValueError, match="label: expected 'class' in an item, which has image, fine_label, caption"):
        Indexed(HuggingFace(), label="class")[0]


def test_labels_are_those_that_the_target_transform_gives():
    folder = Folder(LABELS, read=False)
    folder.target_transform = lambda label: int(label == 2)
    assert Indexed(folder).labels.tolist() == [1, 0, 0, 1, 0]
    folder.target_transform = str
    assert Indexed(folder).labels.tolist() == LABELS  # texts stand for the classes


def test_an_iterable_set_with_a_length_is_refused():
    class Stream(IterableDataset):
        def __len__(self):
            return 5

        def __iter__(self):
            return iter([])

    with pytest.raises(TypeError, match=r"dataset: expected one with len.* and rows by number, got Stream"):
        Indexed(Stream())
