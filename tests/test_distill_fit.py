"""`distill.fit`: the driver's loop on a user's networks and DataLoader."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from tests.test_train_loop import Killed, assert_equal, die_in_step, everything, metrics
from tests.train_tiny import CLASSES, SMALL, TEST, TRAIN, dataset, make_run
from wcord_fast import data, distill, models
from wcord_fast.cli import trained_network as trained
from wcord_fast.train import checkpoint
from wcord_fast.train.checkpoint import CheckpointError
from wcord_fast.train.loader_fit import OWN_OPTIONS
from wcord_fast.train.loaders import TrainLoader
from wcord_fast.train.loop import fit as fit_run

OPTIONS = SMALL["wcord"]


def tensors(split="train"):
    """The tiny set as a user has it: normalised images and labels."""
    tiny = dataset()
    images = getattr(tiny, f"{split}_images").float() / 255
    return TensorDataset((images - 0.3) / 0.3, getattr(tiny, f"{split}_labels"))


def loader(**options):
    return DataLoader(data.Indexed(tensors()), **{"batch_size": 16, "shuffle": True, **options})


def test_loader():
    return DataLoader(tensors("test"), batch_size=5)


test_loader.__test__ = False


def network(width, seed=0):
    """A module that knows nothing of this library."""
    torch.manual_seed(seed)
    body = [nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(width, CLASSES))


def fitted(method="wcord", student=None, teacher=None, batches=None, **options):
    """A short run; WCoRD's bank is small."""
    if "method_options" not in options and method.startswith(("wcord", "crd")):
        options["method_options"] = OPTIONS
    options = {"epochs": 2, "quiet": True, "tensorboard": False, **options}
    teacher = teacher or (None if method == "ce" else network(8, 1))
    student, batches = (network(4) if student is None else student), (loader() if batches is None else batches)
    return distill.fit(student, teacher, batches, method, **options)


class Epochs:
    """A batch sampler with the order of the driver's own batches."""

    def __init__(self, batches):
        self.batches, self.epoch = batches, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return (batch.index.tolist() for batch in self.batches.epoch(self.epoch))


@pytest.mark.parametrize("method", ["wcord+kd", "ft"])
def test_fit_equals_the_loop_of_the_driver(tmp_path, method):
    """With equal networks and order the bits equal those of the command's run."""
    run = make_run(tmp_path / "driver", method, epochs=2)
    run.train.padding = 0  # a user's set of tensors is not augmented
    pair = distill.pair_of(
        run.student, run.teacher, torch.zeros(2, 1, 8, 8), num_data=TRAIN, labels=dataset().train_labels, seed=0
    )
    checkpoint.seed_everything(0)
    run.method = distill.build(method, pair, run.method.options)
    fit_run(run)
    torch.manual_seed(0)
    student = models.create("resnet8", CLASSES, in_channels=1)
    teacher = models.create("wrn_10_1", CLASSES, in_channels=1)
    normalised = run.train.normalise(run.train.dataset.train_images)
    rows = data.Indexed(TensorDataset(normalised, run.train.dataset.train_labels))
    actual = fitted(
        method,
        student,
        teacher,
        DataLoader(rows, batch_sampler=Epochs(run.train)),
        test_loader=list(run.test),
        output_dir=tmp_path / "python",
    )
    assert metrics(actual.history) == metrics(run.history)
    ours, theirs = everything(tmp_path / "python"), everything(tmp_path / "driver")
    for key in ("student", "method", "optimizer", "history"):
        assert_equal(ours[key], theirs[key], key)
    assert actual.student is student
    saved = torch.load(tmp_path / "python" / "student.pt", weights_only=True)
    assert_equal(saved, dict(student.state_dict()))


def test_fit_takes_plain_modules(capsys):
    student = network(4)
    before = student[0].weight.detach().clone()
    actual = fitted("wcord+kd", student, test_loader=test_loader())
    assert not torch.equal(student[0].weight, before) and student.training
    header, rule, *rows = str(actual).splitlines()
    assert re.split(r"\s{2,}", header.strip()) == [
        "epoch", "lr", "loss", "ce", "gckt", "lckt", "kd", "train %", "test %", "best %", "images/s", "loss share",
    ]  # fmt: skip
    assert len(rows) == len(actual.history) == 2 and set(rule) == {"-", " "}
    assert actual.table[-1]["test %"] == f"{actual.history[-1]['test_top1']:.2f}"


def test_accuracy_is_measured_on_the_given_test_loader():
    student = network(4)
    last = fitted("ce", student, test_loader=test_loader()).history[-1]
    images, labels = tensors("test").tensors
    student.eval()
    with torch.no_grad():
        hits = int((student(images).argmax(1) == labels).sum())
    assert last["test_top1"] == pytest.approx(100 * hits / TEST)
    assert "test_top1" not in fitted("ce").history[-1] and "test %" not in fitted("ce").table[-1]


def generated():
    return loader(generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("make", [loader, generated, lambda: loader(num_workers=1)], ids=["global", "own", "worker"])
def test_a_run_that_died_resumes_exactly(tmp_path, monkeypatch, make):
    options = {"epochs": 3, "test_loader": test_loader(), "method": "wcord"}
    fitted(batches=make(), output_dir=tmp_path / "whole", **options)
    die_in_step(monkeypatch, 5)
    with pytest.raises(Killed):
        fitted(batches=make(), output_dir=tmp_path / "broken", **options)
    monkeypatch.undo()
    torch.rand(5)
    used = make()
    list(used)  # the loader may have been read before
    again = fitted(batches=used, student=network(4, seed=7), output_dir=tmp_path / "broken", **options)
    assert [row["epoch"] for row in again.history] == [1, 2, 3]
    assert_equal(everything(tmp_path / "whole"), everything(tmp_path / "broken"))


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for method in ("ce", "ft"):  # ft has a stage of its own
        assert fitted(method, epochs=1, tensorboard=True).directory is None
    assert list(tmp_path.iterdir()) == []


def test_directory_with_a_different_recipe_is_refused(tmp_path):
    fitted("ce", epochs=1, output_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"recipe.lr was 0.05, now 0.1"):
        fitted("ce", epochs=1, output_dir=tmp_path, lr=0.1)
    with pytest.raises(CheckpointError, match=r"data.batch_size was 16, now 8"):
        fitted("ce", epochs=1, output_dir=tmp_path, batches=loader(batch_size=8))
    with pytest.raises(CheckpointError, match=r"model was 'Sequential"):
        fitted("ce", network(5), epochs=1, output_dir=tmp_path)
    assert len(fitted("ce", epochs=2, output_dir=tmp_path, extend=True).history) == 2
    fitted("kd", epochs=1, output_dir=tmp_path / "kd")
    with pytest.raises(CheckpointError, match=r"teacher.weights was"):
        fitted("kd", teacher=network(8, seed=5), epochs=1, output_dir=tmp_path / "kd")


def test_maps_are_tapped_at_the_stages_or_by_name():
    assert fitted("at", epochs=1).history[-1]["loss"] > 0
    chosen = {"student_features": ["2", "4"], "teacher_features": ["2", "4"]}
    assert "hint" in fitted("fitnet", epochs=1, method_options={"layer": 1}, **chosen).history[-1]


def test_banks_are_filled_from_the_loader(monkeypatch):
    seen = []
    kind = distill.METHODS["wcord"].method
    fill = kind.fill_banks
    monkeypatch.setattr(kind, "fill_banks", lambda self, s, t, index: (seen.append(index), fill(self, s, t, index)))
    fitted(epochs=1, method_options={**OPTIONS, "init_banks": True})
    assert torch.cat(seen).tolist() == list(range(TRAIN))
    drawing = data.Indexed(tensors(), transform=lambda image: image + torch.rand(()))
    source = TrainLoader(DataLoader(drawing, batch_size=16), torch.device("cpu"), 0)
    before = torch.get_rng_state()
    assert sum(len(batch.labels) for batch in source.once()) == TRAIN
    assert torch.equal(torch.get_rng_state(), before)  # filling draws nothing that training would miss


def test_bank_methods_work_without_labels():
    class Silent:
        def __len__(self):
            return TRAIN

        def __getitem__(self, row):
            return tensors()[row]

    rows = data.Indexed(Silent())
    assert rows.labels is None
    actual = fitted(batches=DataLoader(rows, batch_size=16), epochs=1)
    assert actual.method.wcord.contrast.sampler.exclude == "self"


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"batches": [1]}, TypeError, "loader: expected a torch.utils.data.DataLoader, got list"),
        ({"batches": DataLoader(tensors())}, TypeError, "loader: expected a DataLoader of data.Indexed"),
        (
            {"batches": DataLoader(Subset(data.Indexed(tensors()), [0, 1]))},
            TypeError,
            "data.Indexed.*got one of Subset",
        ),
        ({"batches": loader(batch_size=50, drop_last=True)}, ValueError, "loader: expected at least one batch"),
        ({"batches": loader(collate_fn=lambda rows: rows)}, TypeError, r"loader: expected tensors \(images"),
        ({"test_loader": iter([])}, TypeError, "test_loader: expected batches that can be read in every epoch"),
        ({"test_loader": []}, ValueError, "test_loader: expected at least one batch, got none"),
        ({"student": 3}, TypeError, "student: expected a torch.nn.Module, got int"),
        ({"student": nn.Flatten()}, ValueError, "student: expected parameters that train, got none"),
        ({"student": nn.LayerNorm(8)}, ValueError, "student: features: LayerNorm has no nn.Linear"),
        (
            {"student": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, CLASSES))},
            RuntimeError,
            r"student: cannot take the loader's images, float32 \[3, 1, .*: .* to have 3 channels",
        ),
        ({"student_features": "9"}, ValueError, "student: features: the network has no module '9'"),
        ({"method": "wcrd"}, ValueError, "did you mean 'wcord'"),
        ({"method_options": {"lambda_gkct": 1}}, TypeError, "did you mean 'lambda_gckt'"),
        ({"method_options": distill.METHODS["crd"].options()}, TypeError, "options: expected WCoRDOptions"),
        ({"epoch": 3}, TypeError, "fit has no option 'epoch'; did you mean 'epochs'"),
        ({"learning_rate": 3}, TypeError, "fit has no option 'learning_rate'; did you mean 'lr'"),
        ({"output": "x"}, TypeError, "fit has no option 'output'; did you mean 'output_dir'"),
        ({"device": "gpu"}, ValueError, "device: expected 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        ({"device": "cuda:99"}, ValueError, "device: got 'cuda:99', but this PyTorch .* CUDA devices"),
        ({"epochs": 0}, ValueError, "epochs: expected an int of at least 1"),
        ({"cuda_graph": True}, ValueError, "cuda_graph: expected a CUDA device, got cpu"),
        ({"log_every": 0}, ValueError, "log_every: expected an int of at least 1"),
    ],
)
def test_unusable_arguments_are_named(change, error, words):
    with pytest.raises(error, match=words):
        fitted(**change)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"method": "wcrd"}, ValueError, "method: .*did you mean 'wcord'"),
        ({"method_options": {"lambda_gkct": 1}}, TypeError, "did you mean 'lambda_gckt'"),
        ({"method_options": 5}, TypeError, "method_options: expected WCoRDOptions or a mapping of its fields, got 5"),
        ({"method_options": []}, TypeError, r"method_options: expected .*, got \[\]"),
        ({"method_options": distill.METHODS["crd"].options()}, TypeError, "method_options: expected WCoRDOptions"),
        ({"output_dir": 5}, ValueError, "output_dir: expected the name of a file or a folder, got 5"),
        ({"log_every": 0}, ValueError, "log_every: expected an int of at least 1"),
        ({"loggers": ["cvs"]}, ValueError, "loggers: .*did you mean 'csv'"),
        *(
            ({name: "no"}, TypeError, f"{name}: expected True or False, got 'no'")
            for name in ("log_grad_norms", "tensorboard", "quiet", "restart", "extend", "channels_last", "compile")
        ),
    ],
)
def test_bad_options_are_refused_before_anything_changes(change, error, words):
    student, teacher = network(4), network(8, 1)
    generator = torch.get_rng_state()
    with pytest.raises(error, match=words):
        fitted(student=student, teacher=teacher, **change)
    assert torch.equal(torch.get_rng_state(), generator)
    assert student.training and teacher.training and all(p.requires_grad for p in teacher.parameters())


def test_a_pair_that_the_method_cannot_serve_leaves_the_teacher_as_it_is():
    teacher = network(8, 1)
    with pytest.raises(distill.CannotServe, match="layer: expected a feature that both networks have"):
        fitted("fitnet", teacher=teacher, method_options={"layer": 9})
    assert teacher.training and all(p.requires_grad for p in teacher.parameters())


def test_labels_beyond_the_students_classes_are_named():
    rows = TensorDataset(tensors().tensors[0], torch.full((TRAIN,), CLASSES))
    with pytest.raises(ValueError, match="labels: expected below 4, the student's classes, got 4"):
        fitted("ce", batches=DataLoader(data.Indexed(rows), batch_size=16))


class Pairs:
    """A data set whose labels are not known before its items are read."""

    def __init__(self, labels):
        self.items = list(zip(tensors().tensors[0], labels, strict=True))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


@pytest.mark.parametrize(
    "labels, error, words",
    [
        ([CLASSES], ValueError, r"expected labels in \[0, 4\), the student's classes, got 4"),
        ([-1], ValueError, r"expected labels in \[0, 4\), the student's classes, got -1"),
        (["cat"], TypeError, "expected labels that are class numbers, 0 and up, got text, 'cat'"),
    ],
)
def test_labels_that_are_no_classes_are_named_as_they_are_read(labels, error, words):
    pairs = Pairs(labels * TRAIN)
    with pytest.raises(error, match=f"^loader: {words}"):
        fitted("ce", batches=DataLoader(data.Indexed(pairs), batch_size=16))
    with pytest.raises(error, match=f"^test_loader: {words}"):
        fitted("ce", test_loader=DataLoader(pairs, batch_size=16))


@pytest.mark.parametrize("method", ["ce", "kd", "dkd", "wkd", "crd", "wcord"])
def test_labels_that_the_cross_entropy_leaves_out_are_taken(method):
    images, labels = tensors().tensors
    rows = TensorDataset(images, labels.index_fill(0, torch.arange(0, TRAIN, 2), -100))
    assert fitted(method, epochs=1, batches=DataLoader(data.Indexed(rows), batch_size=16)).history
    if method == "ce":
        assert fitted("ce", epochs=1, batches=DataLoader(data.Indexed(Pairs(rows.tensors[1])), batch_size=16)).history


def test_the_options_of_fit_are_its_keywords():
    keywords = {p.name for p in inspect.signature(distill.fit).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert keywords == set(OWN_OPTIONS)


def test_the_command_cannot_make_the_network_of_a_checkpoint_of_fit(tmp_path):
    fitted("ce", epochs=1, output_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: written by distill.fit, whose data and network have no"):
        trained.load(tmp_path)
