"""CIFAR-100: both forms, every kind of damage, and pickles that try to run something."""

import codecs
import io
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wcord_fast import data
from wcord_fast.data import cifar100, safe_pickle

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar100_data.py"


def arrays(n=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 100, n)


def python2_pickle(images, labels):
    """The bytes that Python 2's cPickle wrote for the published files: protocol 2, str for every string."""

    def text(s):
        return b"U" + bytes([len(s)]) + s

    def integer(v):
        return b"J" + struct.pack("<i", v)

    shape, raw = (len(images), 3072), images.transpose(0, 3, 1, 2).tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    state = b"(" + integer(1) + integer(shape[0]) + integer(shape[1]) + b"\x86" + dtype + b"\x89"
    state += b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    names = b"](" + b"".join(text(b"name_%d.png" % i) for i in range(len(labels))) + b"e"
    fine = b"](" + b"".join(integer(int(v)) for v in labels) + b"e"
    items = text(b"filenames") + names + text(b"fine_labels") + fine + text(b"data") + array + state
    return b"\x80\x02}(" + items + text(b"batch_label") + text(b"part 1 of 1") + b"u."


def python3_pickle(images, labels, protocol):
    content = {
        b"data": images.transpose(0, 3, 1, 2).reshape(-1, 3072),
        b"fine_labels": [int(v) for v in labels],
        b"coarse_labels": [0] * len(labels),
        b"filenames": [b"x.png"] * len(labels),
    }
    return pickle.dumps(content, protocol=protocol)


def write_pickles(folder, write=python2_pickle):
    folder.mkdir(parents=True, exist_ok=True)
    for part, seed in (("train", 0), ("test", 1)):
        (folder / part).write_bytes(write(*arrays(seed=seed)))


def write_npz(path, channels_first=False, save=np.savez, **changes):
    content = {}
    for part, seed in (("train", 0), ("test", 1)):
        images, labels = arrays(seed=seed)
        content[f"{part}_images"] = images.transpose(0, 3, 1, 2) if channels_first else images
        content[f"{part}_labels"] = labels
    content.update(changes)
    save(path, **{k: v for k, v in content.items() if v is not None})
    return path


def assert_loaded(dataset):
    for images, labels, seed in (
        (dataset.train_images, dataset.train_labels, 0),
        (dataset.test_images, dataset.test_labels, 1),
    ):
        want, want_labels = arrays(seed=seed)
        assert torch.equal(images, torch.from_numpy(want).permute(0, 3, 1, 2))
        assert images.is_contiguous()
        assert torch.equal(labels, torch.from_numpy(want_labels))
    assert len(dataset.classes) == 100
    assert dataset.classes[0], dataset.classes[99] == ("apple", "worm")
    assert dataset.mean == (0.5071, 0.4867, 0.4408)
    assert dataset.std == (0.2675, 0.2565, 0.2761)
    assert dataset.flip
    assert dataset.padding == 4


def test_hand_written_pickle_equals_the_standard_module():
    images, labels = arrays()
    content = pickle.loads(python2_pickle(images, labels), encoding="bytes")
    assert np.array_equal(content[b"data"], images.transpose(0, 3, 1, 2).reshape(-1, 3072))
    assert content[b"fine_labels"] == labels.tolist()


@pytest.mark.parametrize("inner", ["", "cifar-100-python"])
def test_original_pickles(tmp_path, inner):
    write_pickles(tmp_path / inner)
    assert_loaded(data.load("cifar100", data_dir=tmp_path))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_written_again_by_python_3(tmp_path, protocol):
    write_pickles(tmp_path, lambda x, y: python3_pickle(x, y, protocol))
    assert_loaded(cifar100.load(tmp_path))


@pytest.mark.parametrize("protocol", [2, 5])
def test_column_major_pickle(tmp_path, protocol):
    def write(images, labels):
        rows = np.asfortranarray(images.transpose(0, 3, 1, 2).reshape(-1, 3072))
        return pickle.dumps({"data": rows, "fine_labels": labels.tolist()}, protocol=protocol)

    write_pickles(tmp_path, write)
    assert_loaded(cifar100.load(tmp_path))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("by_folder", [False, True])
def test_npz(tmp_path, save, channels_first, by_folder):
    path = write_npz(tmp_path / "any-name.npz", channels_first, save)
    assert_loaded(data.load("CIFAR-100", data_dir=tmp_path if by_folder else str(path)))


def test_npz_labels_of_any_integer_type(tmp_path):
    path = write_npz(tmp_path / "c.npz", train_labels=arrays()[1].astype(np.uint8))
    assert_loaded(cifar100.load(path))


@pytest.mark.parametrize("there", [False, True])
def test_missing_files_are_named(tmp_path, there, monkeypatch):
    where = tmp_path if there else tmp_path / "absent"
    with pytest.raises(FileNotFoundError) as error:
        data.load("cifar100", data_dir=where)
    for piece in (
        str(where),
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        f"-o {where}/cifar-100-python.tar.gz",
        "train_images",
    ):
        assert piece in str(error.value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no CIFAR-100 in data "):
        data.load("cifar100")


def test_partly_missing_files_are_named(tmp_path):
    write_pickles(tmp_path)
    (tmp_path / "test").unlink()
    with pytest.raises(FileNotFoundError, match=r"only .*train"):
        cifar100.load(tmp_path)


def test_several_npz(tmp_path):
    write_npz(tmp_path / "a.npz")
    write_npz(tmp_path / "b.npz")
    with pytest.raises(FileNotFoundError, match=r"2 \.npz files"):
        cifar100.load(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.txt is no folder, no \.npz and no \.tar\.gz"):
        cifar100.load(tmp_path / "notes.txt")


def python3_pickle_5(images, labels):
    return python3_pickle(images, labels, 5)


@pytest.mark.parametrize("write", [python2_pickle, python3_pickle_5])
def test_every_truncation_of_a_pickle_is_refused(tmp_path, write):
    whole = write(*arrays(n=2))
    path = tmp_path / "train"
    steps = [*range(0, 400), *range(400, len(whole), 997), len(whole) - 1]
    for size in steps:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=str(path)):
            safe_pickle.load(path)


def test_random_damage_always_gives_the_documented_error(tmp_path):
    """Whatever byte is wrong: the load succeeds (a pixel, a name) or raises ValueError naming the file."""
    write_pickles(tmp_path)
    path = tmp_path / "train"
    whole = python2_pickle(*arrays(n=2))
    rng = np.random.default_rng(0)
    pixels_start = whole.index(b"T" + struct.pack("<i", 2 * 3072)) + 5
    places = [*range(pixels_start), *range(pixels_start + 2 * 3072, len(whole))]
    refused = 0
    for place in rng.choice(places, 400):
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            cifar100.load(tmp_path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 100


class Evil:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("call", [os.system, os.mkdir, eval, exec, subprocess.call, codecs.open, np.load, np.fromfile])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_malicious_pickles_run_nothing(tmp_path, call, protocol):
    mark = tmp_path / "mark"
    argument = {eval: f"open({str(mark)!r}, 'w')", exec: f"open({str(mark)!r}, 'w')"}.get(call, f"{mark}")
    if call is os.system:
        argument = f"touch {mark}"
    images, labels = arrays()
    evil = {b"data": Evil(call, argument), b"fine_labels": labels.tolist()}
    (tmp_path / "train").write_bytes(pickle.dumps(evil, protocol=protocol))
    (tmp_path / "test").write_bytes(python2_pickle(images, labels))
    with pytest.raises(ValueError, match="refused"):
        cifar100.load(tmp_path)
    assert not mark.exists()


class Buffers:
    """The parts of a protocol-5 array, with other arguments."""

    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return np.zeros(1, np.uint8).__reduce_ex__(5)[0], self.args


@pytest.mark.parametrize(
    "args",
    [
        (b"1234", np.dtype("u1"), (5,), "C"),
        (b"1234", np.dtype("u1"), (-2, -2), "C"),
        (b"1234", np.dtype("f4"), (1,), "C"),
        (b"1234", "u1", (4,), "C"),
        ("1234", np.dtype("u1"), (4,), "C"),
        ([1, 2, 3, 4], np.dtype("u1"), (4,), "C"),
        (b"1234", np.dtype("u1"), 4, "C"),
        (b"1234", np.dtype("u1"), (4,)),
        (b"", np.dtype("u1"), (0, 2**62), "C"),
    ],
)
def test_protocol_5_arrays_that_do_not_match_their_bytes_are_refused(tmp_path, args):
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps({"data": Buffers(*args), "fine_labels": []}, protocol=5))
    try:
        assert safe_pickle.load(path)["data"].size == 0 and args[2] == (0, 2**62)
    except ValueError as error:
        assert str(path) in str(error)


def test_out_of_band_buffers_are_refused(tmp_path):
    path = tmp_path / "train"
    array = np.zeros((2, 3072), np.uint8)
    path.write_bytes(pickle.dumps({"data": array}, protocol=5, buffer_callback=lambda buffer: None))
    with pytest.raises(ValueError, match="out-of-band"):
        safe_pickle.load(path)


def test_an_array_of_objects_is_refused(tmp_path):
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps({b"data": np.array([{}, []], dtype=object)}, protocol=2))
    with pytest.raises(ValueError, match="dtype"):
        safe_pickle.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a pickled dict"),
        ({b"fine_labels": [0, 1]}, "no 'data'"),
        ({b"data": np.zeros((2, 3072), np.uint8)}, "no 'fine_labels'"),
        ({b"data": np.zeros((2, 3071), np.uint8), b"fine_labels": [0, 1]}, r"\[2, 3071\]"),
        ({b"data": np.zeros((0, 3072), np.uint8), b"fine_labels": []}, r"\[0, 3"),
        ({b"data": np.zeros((2, 3072), np.float32), b"fine_labels": [0, 1]}, "dtype"),
        ({b"data": [1, 2], b"fine_labels": [0, 1]}, "got list"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0]}, "2 integers"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, 100]}, r"0 \.\. 99"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, -1]}, r"0 \.\. 99"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, [1]]}, "list of integers"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": None}, "list of integers"),
    ],
)
def test_wrong_pickles(tmp_path, content, message):
    write_pickles(tmp_path)
    (tmp_path / "test").write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(ValueError, match=message) as error:
        cifar100.load(tmp_path)
    assert str(tmp_path / "test") in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, "no 'train_images'"),
        ({"test_labels": None}, "no 'test_labels'"),
        ({"train_images": arrays()[0].astype(np.float32)}, "float32"),
        ({"train_images": np.zeros((12, 28, 28), np.uint8)}, r"\[12, 28, 28\]"),
        ({"train_images": np.uint8(0)}, "uint8"),
        ({"train_labels": np.zeros(11, np.int64)}, "12 integers"),
        ({"train_labels": np.zeros(12)}, "integers"),
        ({"test_labels": np.full(12, 100)}, r"0 \.\. 99"),
        ({"test_labels": np.array([None] * 12)}, "allow_pickle"),
    ],
)
def test_wrong_npz(tmp_path, changes, message):
    path = write_npz(tmp_path / "c.npz", **changes)
    with pytest.raises(ValueError, match=message) as error:
        cifar100.load(path)
    assert str(path) in str(error.value)


def test_damaged_npz(tmp_path):
    path = tmp_path / "c.npz"
    whole = write_npz(path).read_bytes()
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    broken = bytearray(whole)
    broken[len(whole) // 3] ^= 255  # a pixel: the zip's checksum notices
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-1], array.getvalue(), bytes(broken)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=str(path)):
            cifar100.load(path)


@pytest.mark.skipif(not REAL.with_name("cifar100-test.zip").exists(), reason="the packed CIFAR-100 is not here")
def test_real_images(tmp_path):
    sys.path.insert(0, str(REAL.parent))
    try:
        import cifar100_data
    finally:
        sys.path.remove(str(REAL.parent))
    images, labels = cifar100_data.load_test()
    path = tmp_path / "cifar100.npz"
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    dataset = data.load("cifar100", data_dir=path, limit_train=1000)
    assert list(dataset.classes) == cifar100_data.CLASSES
    assert torch.bincount(dataset.train_labels).tolist() == [10] * 100
    assert torch.equal(dataset.test_images[1234], torch.from_numpy(images[1234]).permute(2, 0, 1))
    whole = torch.cat([b[0] for b in data.TestBatches(dataset, 1000)])
    assert whole.mean((0, 2, 3)).abs().max() < 0.02  # the published mean and deviation are of these pictures
    assert (whole.std((0, 2, 3)) - 1).abs().max() < 0.02
