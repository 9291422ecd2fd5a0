"""CIFAR-10, and both sets from their archives as downloaded: nothing is written to disk, nothing in them is trusted."""

import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch

from wcord_fast import data
from wcord_fast.cli.main import main
from wcord_fast.data import archive, cifar10, cifar100

KINDS = {"cifar10": cifar10.CIFAR10, "cifar100": cifar100.CIFAR100}


def arrays(seed, classes, n=12):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), dtype=np.uint8), [int(c) for c in rng.integers(0, classes, n)]


def pickles(kind, protocol=2):
    """File name -> bytes, as in the original archive."""
    files = {}
    for seed, name in enumerate(kind.files):
        pixels, labels = arrays(seed, len(kind.classes))
        content = {b"data": pixels, kind.labels.encode(): labels, b"batch_label": name.encode()}
        files[name] = pickle.dumps(content, protocol=protocol)
    files[{"cifar10": "batches.meta", "cifar100": "meta"}[kind.name]] = pickle.dumps({b"names": []}, protocol=2)
    return files


def packed(path, members, mode="w:gz"):
    """`members`: TarInfo or name -> bytes."""
    with tarfile.open(path, mode) as tar:
        for member, content in members.items():
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return path


def whole(kind):
    folder = tarfile.TarInfo(kind.folder)
    folder.type = tarfile.DIRTYPE
    return {folder: b"", **{f"{kind.folder}/{name}": content for name, content in pickles(kind).items()}}


def assert_loaded(dataset, kind):
    parts = [arrays(seed, len(kind.classes)) for seed in range(len(kind.files))]
    pixels, labels = np.concatenate([p for p, _ in parts[:-1]]), [label for _, y in parts[:-1] for label in y]
    assert torch.equal(dataset.train_images, torch.from_numpy(pixels).view(-1, 3, 32, 32))
    assert dataset.train_labels.tolist() == labels and dataset.test_labels.tolist() == parts[-1][1]
    assert torch.equal(dataset.test_images, torch.from_numpy(parts[-1][0]).view(-1, 3, 32, 32))
    assert (dataset.name, dataset.classes, dataset.mean, dataset.std) == (kind.name, kind.classes, kind.mean, kind.std)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("inner", [False, True])
def test_pickles(tmp_path, name, inner):
    kind = KINDS[name]
    folder = tmp_path / kind.folder if inner else tmp_path
    folder.mkdir(exist_ok=True)
    for file, content in pickles(kind, protocol=5).items():
        (folder / file).write_bytes(content)
    assert_loaded(data.load(name, data_dir=tmp_path), kind)
    (folder / kind.files[0]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {kind.title} in .*only .*{kind.test}\)") as error:
        data.load(name, data_dir=tmp_path)
    assert kind.url in str(error.value)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".tar"])
@pytest.mark.parametrize("by_folder", [False, True])
def test_archives_are_read_and_nothing_is_written(tmp_path, name, ending, by_folder):
    kind = KINDS[name]
    path = tmp_path / f"{kind.archive.removesuffix('.tar.gz')}{ending}"
    packed(path, whole(kind), "w" if ending == ".tar" else "w:gz")
    assert_loaded(data.load(name, data_dir=tmp_path if by_folder else path), kind)
    assert list(tmp_path.iterdir()) == [path]


def test_urls_are_those_of_the_authors():
    for kind in KINDS.values():
        assert kind.url == f"https://www.cs.toronto.edu/~kriz/{kind.title.lower()}-python.tar.gz"
    assert cifar10.CIFAR10.classes[:3] == ("airplane", "automobile", "bird") and len(cifar10.CIFAR10.classes) == 10


def test_cifar10_from_an_npz(tmp_path):
    content = {f"{part}_images": np.zeros((4, 32, 32, 3), np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "a.npz", **content, train_labels=np.arange(4), test_labels=np.arange(4) + 6)
    assert data.load("CIFAR-10", data_dir=tmp_path).test_labels.tolist() == [6, 7, 8, 9]
    np.savez(tmp_path / "a.npz", **content, train_labels=np.arange(4), test_labels=np.arange(4) + 7)
    with pytest.raises(ValueError, match=r"'test_labels' must be 0 \.\. 9, got 7 \.\. 10"):
        data.load("cifar10", data_dir=tmp_path)
    with pytest.raises(ValueError, match="CIFAR-10 is 32x32, got 16"):
        data.load("cifar10", data_dir=tmp_path, image_size=16)


def link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def outside():
    return {"../../evil": b"x", "/tmp/evil-absolute": b"x", link("cifar-100-python/evil", tarfile.SYMTYPE): b""}


def test_hostile_archive_writes_nothing_outside(tmp_path):
    """Members that lead out of the folder are passed over, those in a needed file's place are refused."""
    (tmp_path / "in").mkdir()
    path = packed(tmp_path / "in" / "cifar-100-python.tar.gz", {**outside(), **whole(cifar100.CIFAR100)})
    assert_loaded(data.load("cifar100", data_dir=path), cifar100.CIFAR100)
    assert [p.name for p in tmp_path.rglob("*")] == ["in", path.name]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        members = {link("cifar-100-python/train", kind): b"", "cifar-100-python/test": b"x"}
        packed(path, members)
        with pytest.raises(ValueError, match=r"tar\.gz: .*train is there twice or is no plain file"):
            data.load("cifar100", data_dir=path)
    with tarfile.open(path, "w:gz") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("cifar-100-python/train"))
    with pytest.raises(ValueError, match="is there twice"):
        data.load("cifar100", data_dir=path)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_a_hostile_pickle_in_an_archive_runs_nothing(tmp_path):
    content = pickle.dumps({b"data": Evil(tmp_path / "mark"), b"fine_labels": [1]})
    path = packed(tmp_path / "a.tar.gz", {"cifar-100-python/train": content, "cifar-100-python/test": content})
    with pytest.raises(ValueError, match=r"a\.tar\.gz: cifar-100-python/train: .*refused"):
        data.load("cifar100", data_dir=path)
    assert not (tmp_path / "mark").exists()


def test_archive_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "LIMIT", 2**20)
    bomb = packed(tmp_path / "a.tar.gz", {"filler": bytes(2**22)})
    assert bomb.stat().st_size < 2**14
    with pytest.raises(ValueError, match="unpacks to more than 1 MB"):
        data.load("cifar100", data_dir=bomb)
    claims = tarfile.TarInfo("cifar-100-python/train")
    claims.size = 2**40  # of which no byte follows
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(claims.tobuf() + bytes(512)))
    with pytest.raises(ValueError, match=r"b\.tar\.gz: not a readable archive"):
        data.load("cifar100", data_dir=tmp_path / "b.tar.gz")


def test_damaged_archives(tmp_path):
    path = packed(tmp_path / "cifar-100-python.tar.gz", whole(cifar100.CIFAR100))
    content = path.read_bytes()
    middle = bytearray(content)
    middle[len(content) // 2] ^= 16
    sum_at_the_end = bytearray(content)
    sum_at_the_end[-6] ^= 1
    for broken in (
        b"",
        b"no archive",
        content[:100],
        content[: len(content) // 2],
        content[:-4],
        middle,
        sum_at_the_end,
    ):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=str(path)):
            data.load("cifar100", data_dir=tmp_path)
    packed(path, {"cifar-100-python/train": b"x", "elsewhere/test": b"x"})
    with pytest.raises(ValueError, match="no cifar-100-python/test in it"):
        data.load("cifar100", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        data.load("cifar100", data_dir=tmp_path / "other.tar.gz")


def test_the_driver_trains_on_cifar10(tmp_path, capsys):
    packed(tmp_path / "cifar-10-python.tar.gz", whole(cifar10.CIFAR10))
    assert main(["distill", "--data=cifar10", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "teacher: resnet32x4" in output and "epochs: 240" in output and "runs/cifar10_resnet32x4_resnet8x4" in output
    argv = [
        "teacher",
        "--data=cifar10",
        f"--data-dir={tmp_path}",
        "--teacher=resnet8",
        "--epochs=1",
        "--batch-size=59",
    ]
    assert main([*argv, f"--output-dir={tmp_path / 'out'}", "--no-tensorboard"]) == 0  # 60 images: one batch
    assert "60 training and 12 test images, 10 classes" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "out" / "teacher"), f"--data-dir={tmp_path}", "--per-class"]) == 0
    assert "automobile" in capsys.readouterr().out
