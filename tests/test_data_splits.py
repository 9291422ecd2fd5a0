"""The folders that are splits, the folders that are classes, and the files that are read."""

import logging
import os
import shutil

import pytest
from PIL import Image

from wcord_fast import data
from wcord_fast.data import folders, split_folders


def tree(root, spec):
    """{folder: number of images}, by "a/b/c"."""
    for folder, n in spec.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(root / folder / f"{i}.png")
    return root


def loaded(root):
    dataset = data.load("folder", data_dir=root, image_size=8)
    return dataset.classes, len(dataset.train_labels), len(dataset.test_labels)


def splits(train, test, before=""):
    return {f"{before}{train}/cat": 6, f"{before}{train}/dog": 4, f"{before}{test}/cat": 2, f"{before}{test}/dog": 1}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("Train", "Test"),
        ("TRAIN", "valid"),
        ("train", "validation"),
        ("train", "dev"),
        ("train", "eval"),
        ("training_set", "test_set"),
        ("Train Images", "Val-Images"),
        ("trainset", "Evaluation"),
        ("training_set/training_set", "test_set/test_set"),
    ],
)
def test_usual_names_of_splits(tmp_path, train, test):
    assert loaded(tree(tmp_path, splits(train, test))) == (("cat", "dog"), 10, 3)
    lazy = data.load("imagenet", data_dir=tmp_path, image_size=8)
    assert (lazy.classes, len(lazy.train_labels), len(lazy.test_labels)) == (("cat", "dog"), 10, 3)


@pytest.mark.parametrize("before", ["archive/", "a/b/c/"])
def test_split_folders_one_level_down_are_found(tmp_path, before):
    tree(tmp_path, splits("train", "test", before))
    (tmp_path / "__MACOSX" / "a").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    assert loaded(tmp_path) == (("cat", "dog"), 10, 3)
    assert loaded(tree(tmp_path / "other", {"x/y/cat": 5, "x/y/dog": 5})) == (("cat", "dog"), 8, 2)


def test_test_folder_wins_over_val_and_unread_folders_are_reported(tmp_path, caplog):
    tree(tmp_path, {**splits("train", "test"), "valid/cat": 7, "masks/cat": 3})
    with caplog.at_level("INFO", logger="wcord_fast"):
        assert loaded(tmp_path) == (("cat", "dog"), 10, 3)
    assert "the test images are those of test/; not read: valid/, masks/" in caplog.text
    for file in (tmp_path / "test").rglob("*.png"):  # as ImageNet's: test images without classes
        file.rename(tmp_path / "test" / f"{file.parent.name}{file.name}")
    shutil.rmtree(tmp_path / "test" / "cat"), shutil.rmtree(tmp_path / "test" / "dog")
    assert loaded(tmp_path) == (("cat", "dog"), 10, 7)
    assert "not read, for want of class folders: test/" in caplog.text
    shutil.rmtree(tmp_path / "valid"), shutil.rmtree(tmp_path / "masks")
    tree(tmp_path, {"unlabelled": 3})
    assert loaded(tmp_path) == (("cat", "dog"), 8, 2)
    assert "only train/ is read, not unlabelled/" in caplog.text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({**splits("train", "holdout")}, "train/ and no known test folder, but holdout/ has some of its classes"),
        ({**splits("seg_train", "seg_test"), "seg_pred": 4}, "seg_test/, seg_train/.* look like splits"),
        (splits("train2017", "val2017"), "train2017/, val2017/ .*look like splits"),
        (splits("myTrain", "myTest"), "myTest/, myTrain/ .*look like splits"),
        (splits("fold1", "fold2"), "fold1/, fold2/ .*all have the folders cat/, dog/, as splits have"),
        ({**splits("train", "test"), **splits("Training", "val")}, "has Training/, train/: which of them"),
        ({**splits("train", "valid"), "val/cat": 1}, "has val/, valid/: which of them"),
        (
            {"set/train/cat": 2, "set/train/dog": 2, "set/test/cat": 2, "docs/img": 1},
            "set has test/, train/, which are",
        ),
        ({"cat/train": 3, "cat/test": 2, "dog/train": 3, "dog/test": 2}, "cat has test/, train/, which are splits"),
        ({"train": 5, "test": 3}, "test/, train/ .*hold images, but no class folders"),
        ({"train": 5, "test": 3, "csv": 0}, "test/, train/ .*hold images, but no class folders"),
        ({"test/cat": 5, "test/dog": 3}, "train is not; seen: test/"),
        (
            {"train": 5, "test/cat": 5, "test/dog": 3},
            "train is not; seen: test/, train/; no class folders are in train/",
        ),
    ],
)
def test_unknown_split_names_are_reported(tmp_path, spec, message):
    with pytest.raises(ValueError, match=message):
        loaded(tree(tmp_path, spec))


@pytest.mark.parametrize(
    "spec",
    [
        {"bus": 4, "train": 4, "plane": 4},  # vehicles
        {"bus": 4, "train_station/old": 4, "plane": 4},
        {"cat/indoor": 3, "cat/outdoor": 3, "dog/indoor": 3, "dog": 2},
        {"eval": 4, "apply": 4},
        {"cat/a": 4, "dog/b": 4},
    ],
)
def test_classes_of_any_name(tmp_path, spec):
    classes, train, test = loaded(tree(tmp_path, spec))
    assert classes == tuple(sorted({folder.split("/")[0] for folder in spec}))
    assert train + test == sum(spec.values())


def test_images_outside_class_folders_are_reported(tmp_path, caplog):
    root = tree(tmp_path, {**splits("train", "test"), "train": 2})
    assert loaded(root) == (("cat", "dog"), 10, 3)
    assert "train: 2 images are in no class folder and not read: 0.png" in caplog.text
    shutil.rmtree(root / "test")
    assert loaded(root) == (("cat", "dog"), 8, 2)
    tree(root, {"": 1, "bus": 4, "plane": 4})  # now it is one of three classes
    assert loaded(root) == (("bus", "plane", "train"), 16, 4)


def test_folder_kinds_are_recognised():
    for name in ("train", "Training", "TRAIN_SET", "training data", "trainset", "train-images"):
        assert split_folders.kind_of(name) == "train"
    for name in ("test", "Testing", "test_set", "TestImages"):
        assert split_folders.kind_of(name) == "test"
    for name in ("val", "Valid", "validation", "dev", "eval", "valset", "development"):
        assert split_folders.kind_of(name) == "val"
    for name in ("trainer", "contest", "value", "devil", "set", "images", "", "train2017", "strain"):
        assert split_folders.kind_of(name) is None


HELPERS = (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails", "#recycle", "$RECYCLE.BIN", ".git")


def test_helpers_are_neither_images_nor_classes_and_are_not_counted(tmp_path, caplog):
    root = tree(tmp_path, splits("train", "test"))
    for helper in HELPERS:
        for place in (root, root / "train", root / "train" / "cat", root / "test" / "cat"):
            tree(place, {helper: 2})
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.jpg"):
        (root / "train" / "cat" / name).write_bytes(b"\0\5\x16\7" + bytes(80))
    assert loaded(root) == (("cat", "dog"), 10, 3)
    assert not caplog.records
    for name in ("notes.txt", "a.TXT", "film.mpg", "README"):
        (root / "train" / "dog" / name).write_text("x")
    assert loaded(root) == (("cat", "dog"), 10, 3)
    (record,) = caplog.records
    assert "train: 4 files that are not images are ignored: 2 .txt, 1 " in record.getMessage()
    assert all(end in record.getMessage() for end in (" .mpg", " without suffix"))


def test_links_are_followed_and_loops_are_not(tmp_path, caplog):
    root = tree(tmp_path / "set", splits("train", "test"))
    more = tree(tmp_path / "more", {"x": 5, "x/deeper": 1, "emu": 3})
    cat = root / "train" / "cat"
    (cat / "more").symlink_to(more / "x")
    (root / "train" / "emu").symlink_to(more / "emu")
    assert loaded(root) == (("cat", "dog", "emu"), 19, 3)
    assert not caplog.records
    for name, target in {"self": cat, "top": root, "all": root / "train"}.items():
        (cat / name).symlink_to(target)
    (more / "x" / "back").symlink_to(more / "x")
    (more / "x" / "round").symlink_to(cat)
    (cat / "itself").symlink_to("itself")
    paths, labels = folders.list_images(root / "train", ("cat", "dog", "emu"))
    assert labels.bincount().tolist() == [6 + 6, 4, 3]
    assert sum("leads back" in r.getMessage() for r in caplog.records) == 5
    assert paths == sorted(paths, key=lambda f: f.split("/"))


def test_dangling_link_is_reported(tmp_path):
    root = tree(tmp_path, splits("train", "test"))
    (root / "train" / "cat" / "gone.png").symlink_to(tmp_path / "annex" / "gone.png")
    with pytest.raises(ValueError, match=r"1 of 14 image files cannot be read: .*gone\.png"):
        loaded(root)
    assert len(data.load("imagenet", data_dir=root).fingerprint) == 16


def mkdir_bytes(root, name):
    path = os.path.join(os.fsencode(root), name)
    try:
        os.makedirs(path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    Image.new("RGB", (8, 8)).save(os.fsdecode(path) + "/0.png")
    Image.new("RGB", (8, 8)).save(os.fsdecode(path) + "/1.png")


def test_class_folders_of_any_encoding(tmp_path):
    """Latin-1 is read as such, accents in either form are one class, and two folders of one name stay two classes."""
    for part, name in (("train", "café".encode("latin-1")), ("test", "cafe\u0301".encode())):
        mkdir_bytes(tmp_path / part, name)
        mkdir_bytes(tmp_path / part, "猫".encode())
        mkdir_bytes(tmp_path / part, b"\xff\xfe")
    for loader in ("folder", "imagenet"):
        dataset = data.load(loader, data_dir=tmp_path)
        assert sorted(dataset.classes) == ["café", "ÿþ", "猫"]
        assert dataset.train_labels.bincount().tolist() == dataset.test_labels.bincount().tolist() == [2, 2, 2]
        assert len(dataset.fingerprint) == 16
    mkdir_bytes(tmp_path / "train", "café".encode())
    assert sorted(folders.classes_in(tmp_path / "train")) == ["caf\\xe9", "café", "ÿþ", "猫"]


def test_a_run_on_such_names_is_evaluated_by_class(tmp_path, capsys, monkeypatch):
    from wcord_fast.cli.main import main

    for name in ("café".encode("latin-1"), "猫".encode()):
        mkdir_bytes(tmp_path / "set" / "train", name)
        mkdir_bytes(tmp_path / "set" / "test", name)
    argv = ["distill", "--config=digits", "--data=folder", f"--data-dir={tmp_path / 'set'}", "--epochs=1"]
    argv += ["--teacher=resnet8", "--student=resnet8", "--methods=ce", "--teacher-epochs=1", "--no-tensorboard"]
    assert main([*argv, f"--output-dir={tmp_path / 'out'}", "--image-size=8"]) == 0
    run = ["evaluate", str(tmp_path / "out" / "ce"), f"--data-dir={tmp_path / 'set'}", "--per-class"]
    capsys.readouterr()
    assert main(run) == 0 and {"café", "猫"} <= set(capsys.readouterr().out.split())
    assert main([*run, "--json"]) == 0
    with open(tmp_path / "screen.txt", "w", encoding="ascii") as screen:
        monkeypatch.setattr("sys.stdout", screen)
        assert main(run) == 0
    assert "caf\\xe9" in (tmp_path / "screen.txt").read_text()


def test_ordinary_set_logs_nothing(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="wcord_fast"):
        loaded(tree(tmp_path, splits("train", "test")))
    assert not caplog.records
