"""Files that cannot be read: one error that lists them all, or a set without them with right rows and counts."""

import logging
import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_data_folder import write
from wcord_fast import data
from wcord_fast.cli import workbench
from wcord_fast.cli.main import main
from wcord_fast.data import decode, lazy_batches, lazy_folder
from wcord_fast.train import ranks


def damaged(root, names):
    """Files that are truncated, empty, no images, or images of another kind than their name."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "whole.png")
    whole = (root / "whole.png").read_bytes()
    (root / "whole.png").unlink()
    for i, name in enumerate(names):
        (root / name).write_bytes([whole[:2000], b"", b"not an image", whole[:20]][i % 4])


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "train", {"cat": 5, "dog": 6, "emu": 4})
    write(tmp_path / "val", {"cat": 3, "emu": 2})
    damaged(tmp_path, ["train/cat/bad.png", "train/dog/000.png", "train/dog/zz.jpg", "val/emu/bad.png"])
    return tmp_path


GOOD_TRAIN, GOOD_TEST = [0] * 5 + [1] * 5 + [2] * 4, [0] * 3 + [2] * 2


def every_batch(dataset):
    loader = data.test_batches(dataset, 2) if isinstance(dataset, data.Dataset) else None
    train = data.train_batches(dataset, 4, seed=0)
    if loader is None:
        train.workers = 1
        loader = lazy_batches.LazyBatches(dataset, 2, seed=None, workers=0)
    return list(train.epoch(0)), list(loader)


@pytest.mark.parametrize("loader", ["folder", "imagenet"])
def test_all_unreadable_files_are_named_in_one_line(folder, loader):
    with pytest.raises(ValueError) as error:
        every_batch(data.load(loader, data_dir=folder, image_size=12))
    message = str(error.value)
    assert "4 of 23 image files cannot be read: " in message and "--skip-corrupt" in message and "\n" not in message
    for name in ("train/cat/bad.png", "train/dog/000.png", "train/dog/zz.jpg", "val/emu/bad.png"):
        assert message.count(f"{folder}/{name}: cannot be read as an image: ") == 1


@pytest.mark.parametrize("loader", ["folder", "imagenet"])
def test_rows_after_skipping_are_the_readable_files(folder, loader, caplog):
    dataset = data.load(loader, data_dir=folder, image_size=12, skip_corrupt=True)
    assert dataset.train_labels.tolist() == GOOD_TRAIN and dataset.test_labels.tolist() == GOOD_TEST
    names = {"train/cat/bad.png", "train/dog/000.png", "train/dog/zz.jpg", "val/emu/bad.png"}
    assert set(dataset.skipped) == {f"{folder}/{name}" for name in names}
    assert "left out: 4 of 23 image files cannot be read" in caplog.text
    train, test = every_batch(dataset)
    for batches, labels in ((train, GOOD_TRAIN), (test, GOOD_TEST)):
        index = torch.cat([b.index for b in batches])
        assert sorted(index.tolist()) == list(range(len(labels)))
        for batch in batches:
            assert batch.labels.tolist() == [labels[i] for i in batch.index.tolist()]
            colour = batch.images.mean((2, 3)) * torch.tensor(dataset.std) + torch.tensor(dataset.mean)
            assert torch.equal(colour.argmax(1), batch.labels)  # a cat is red, a dog green, an emu blue
    assert dataset.to("cpu").skipped == dataset.skipped == dataset.limit_train(6).skipped
    assert dataset.limit_train(6).train_labels.bincount().tolist() == [2, 2, 2]


def test_skip_corrupt_does_not_change_a_sound_set(tmp_path, caplog):
    write(tmp_path / "train", {"cat": 3, "dog": 3})
    write(tmp_path / "test", {"cat": 1})
    for loader in ("folder", "imagenet"):
        one, other = (data.load(loader, data_dir=tmp_path, image_size=12, skip_corrupt=s) for s in (False, True))
        assert one.fingerprint == other.fingerprint and other.skipped == ()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_many_unreadable_files_are_counted_and_some_named(tmp_path):
    write(tmp_path, {"cat": 2, "dog": 2})
    damaged(tmp_path, [f"cat/x{i:02d}.png" for i in range(25)])
    with pytest.raises(ValueError, match=r"^25 of 29 image files .*x00.*x09\S+: .*; and 15 more\. ") as error:
        data.load("folder", data_dir=tmp_path)
    assert "x10" not in str(error.value)


@pytest.mark.parametrize("loader", ["folder", "imagenet"])
def test_empty_class_or_test_set_after_skipping_is_refused(tmp_path, loader):
    write(tmp_path / "train", {"cat": 2, "dog": 2, "emu": 1})
    write(tmp_path / "test", {"cat": 1})
    damaged(tmp_path, ["train/emu/000.png"])
    with pytest.raises(ValueError, match="no image of the class 'emu' can be read"):
        data.load(loader, data_dir=tmp_path, skip_corrupt=True)
    write(tmp_path / "train", {"emu": 1})
    damaged(tmp_path, ["test/cat/000.png"])
    with pytest.raises(ValueError, match=r"no (test image|image in it) can be read"):
        data.load(loader, data_dir=tmp_path, skip_corrupt=True)


def test_search_for_unreadable_files_is_limited(folder, monkeypatch):
    monkeypatch.setattr(lazy_batches, "PATIENCE", 0.01)
    monkeypatch.setattr(decode, "CHUNK", 7)
    real = decode.read
    monkeypatch.setattr(decode, "read", lambda path, mode: time.sleep(0.02) or real(path, mode))
    dataset = data.load("imagenet", data_dir=folder, image_size=12)
    batches = lazy_batches.LazyBatches(dataset, 2, seed=None, workers=0)  # the test images, of which the last is bad
    with pytest.raises(ValueError, match=r"3 of the first 7 of 23 image files cannot be read: .*val/emu/bad") as error:
        list(batches)
    assert "train/cat/bad.png" in str(error.value) and "zz.jpg" not in str(error.value)


def test_one_rank_checks_the_files_and_all_ranks_skip_equally(folder, monkeypatch):
    """All ranks leave out the files that rank 0 cannot read, also if another rank could read them."""
    looked = []
    monkeypatch.setattr(lazy_folder.LazyFolder, "unreadable", lambda self, train=True: looked.append(train) or ())
    gone = (f"{folder}/train/cat/bad.png", f"{folder}/val/emu/bad.png")
    monkeypatch.setattr(workbench, "from_main", lambda make: gone)
    spec = {"name": "imagenet", "image_size": 12, "limit_train": None, "skip_corrupt": True}
    dataset = workbench.load_data(spec, str(folder))
    assert dataset.skipped == gone and len(dataset.train_labels) == 16 and not looked
    monkeypatch.setattr(workbench, "from_main", lambda make: make())
    workbench.load_data(spec, str(folder), test_only=True)
    assert looked == [False]  # evaluate does not read the training images
    assert pickle.loads(pickle.dumps(dataset)).skipped == gone


def test_ranks_that_read_different_images_are_refused(monkeypatch):
    monkeypatch.setattr(ranks, "ranks", lambda: type("R", (), {"rank": 0, "world": 2})())
    monkeypatch.setattr(ranks.dist, "all_gather_object", lambda box, own: box.__setitem__(slice(2), [own, "b"]))
    with pytest.raises(ValueError, match=r"data_dir: differ \(fingerprints a, b\)"):
        ranks.require_equal("data_dir: differ", lambda: "a")
    ranks.require_equal("data_dir: differ", lambda: "b")


@pytest.mark.parametrize("loader", ["folder", "imagenet"])
def test_run_reports_skipped_files_and_evaluates_without_them(folder, tmp_path, capsys, loader):
    out = tmp_path / "out"
    argv = ["distill", "--config=digits", f"--data={loader}", f"--data-dir={folder}", "--image-size=12", "--epochs=1"]
    argv += ["--teacher=resnet8", "--teacher-epochs=1", "--batch-size=8", "--methods=ce", "--no-tensorboard"]
    argv += [f"--output-dir={out}", "--threads=1"]
    if loader == "folder":
        assert main(argv) == 1
        assert "4 of 23 image files cannot be read" in capsys.readouterr().err and not out.exists()
    logging.disable(logging.NOTSET)
    assert main([*argv, "--skip-corrupt"]) == 0
    output = capsys.readouterr().out
    assert "14 training and 5 test images" in output
    assert "4 image files could not be read and are left out." in " ".join(output.split())
    assert "4 image files could not be read and are left out." in (out / "results.md").read_text()
    assert main([*argv, "--skip-corrupt"]) == 0 and capsys.readouterr().out.count("finished earlier") == 2
    assert main(["evaluate", str(out / "ce"), f"--data-dir={folder}"]) == 0
    assert "on 5 test images" in capsys.readouterr().out
