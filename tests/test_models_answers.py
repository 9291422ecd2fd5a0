"""Networks that return an object that holds the logits, or a tuple."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from wcord_fast import data, distill
from wcord_fast.models import Tapped
from wcord_fast.train.evaluation import evaluate, predictions

Named = namedtuple("Named", "logits aux_logits")


@dataclass
class Answer:
    loss: torch.Tensor | None
    logits: torch.Tensor


class ModelOutput(OrderedDict):
    """A mapping whose items are attributes too, as in Hugging Face's library."""

    def __getattr__(self, name):
        return self[name]


TAKEN = {
    "tensor": lambda y: y,
    "namespace": lambda y: SimpleNamespace(logits=y),
    "dataclass": lambda y: Answer(None, y),
    "dict": lambda y: {"logits": y, "loss": y.sum()},
    "ModelOutput": lambda y: ModelOutput(logits=y),
    "Inception in training": lambda y: Named(y, y + 1),
}
REFUSED = {
    "tuple": (lambda y: (y, y[:1]), r"got tuple of Tensor \[\d, 10\], Tensor \[1, 10\]"),
    "list": (lambda y: [y], r"got list of Tensor \[\d, 10\]"),
    "dict": (lambda y: {"out": y, "aux": y}, r"got dict with 'out', 'aux'"),
    "object": (lambda y: SimpleNamespace(last_hidden_state=y), r"got SimpleNamespace"),
    "logits that are none": (lambda y: SimpleNamespace(logits=[1]), r"got SimpleNamespace"),
    "nothing": (lambda y: None, r"got NoneType"),
}


class Net(nn.Module):
    def __init__(self, answer):
        super().__init__()
        torch.manual_seed(0)
        self.answer, self.conv, self.fc = answer, nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        return self.answer(self.fc(self.conv(x).mean((2, 3))))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def batches():
    pixels = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(12) % 10
    options = {"name": "t", "classes": tuple(map(str, range(10))), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    dataset = data.Dataset(train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels, **options)
    return data.test_batches(dataset, 5)


@pytest.mark.parametrize("kind", TAKEN)
def test_answers_of_supported_forms_are_accepted(kind, batches):
    plain, net = Net(TAKEN["tensor"]), Net(TAKEN[kind])
    want = plain(X)
    tapped = Tapped(net, ["conv"])
    assert torch.equal(tapped(X), want) and torch.equal(tapped(X, return_features=True)[1], want)
    method = distill.create("kd", student=tapped, teacher=tapped, example=X, num_data=8, labels=torch.arange(8))
    out = distill.Outputs(*tapped(X, return_features=True))
    batch = distill.Batch(X, torch.arange(2), torch.arange(2))
    assert method(out, distill.Outputs(*Tapped(net)(X, return_features=True)), batch).value.item() == 0
    assert evaluate(net, batches) == evaluate(plain, batches) == evaluate(tapped, batches)
    assert torch.equal(predictions(net, batches)[0], predictions(plain, batches)[0])


@pytest.mark.parametrize("kind", REFUSED)
def test_answers_of_other_forms_are_refused_by_name(kind, batches):
    answer, message = REFUSED[kind]
    net = Net(answer)
    match = rf"network: expected its output to be logits \[B, classes\], .*{message}"
    for call in (
        lambda: Tapped(net)(X),
        lambda: Tapped(net)(X, return_features=True),
        lambda: distill.create("ce", student=Tapped(net), example=X, num_data=8),
        lambda: evaluate(net, batches),
        lambda: predictions(net, batches),
    ):
        with pytest.raises(TypeError, match=match):
            call()


class Answers(nn.Module):
    """Returns its constructor's argument for `return_features=True`."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, return_features=False):
        return self.answer


F = [torch.ones(2, 4)]
PROBED = {
    "a tensor": (F[0], TypeError, r"student: .*\(features, logits\), got Tensor; models.Tapped"),
    "three": ((F, F[0], 1), TypeError, "student: .*got tuple"),
    "no list": ((F[0], F[0]), TypeError, r"student: .*\(features, logits\)"),
    "features": (([1], F[0]), TypeError, "student: .* feature 0 is int"),
    "logits": ((F, SimpleNamespace(logits=F[0])), TypeError, "student: .*logits.* SimpleNamespace; models.Tapped"),
    "token logits": ((F, torch.ones(2, 3, 4)), ValueError, r"student: expected logits \[B, classes\], got \[2, 3, 4\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROBED)
def test_distill_names_the_network(case):
    answer, error, message = PROBED[case]
    good = Tapped(Net(TAKEN["tensor"]))
    with pytest.raises(error, match=message):
        distill.create("kd", student=Answers(answer), teacher=good, example=X, num_data=8)
    with pytest.raises(error, match=message.replace("student", "teacher", 1)):
        distill.create("kd", student=good, teacher=Answers(answer), example=X, num_data=8)


def test_evaluation_of_other_shapes(batches):
    with pytest.raises(ValueError, match=r"network: expected logits \[B, classes\], got \[5, 10, 1\]"):
        evaluate(Net(lambda y: y[..., None]), batches)
