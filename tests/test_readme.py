"""The README's examples run as they stand."""

import re
from pathlib import Path

import torch

from wcord_fast import data, distill, models
from wcord_fast.train.evaluation import evaluate

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def example(name):
    return re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", README, re.S)[1]


def test_a_users_networks_are_distilled_by_hooks():
    torch.manual_seed(0)
    names = {}
    exec(example("hooks"), names)
    student, method, digits = names["student"], names["method"], names["digits"]
    accuracy = evaluate(student, data.TestBatches(digits))["test_top1"]
    assert accuracy > 20  # by chance 10; how much more depends on the release of PyTorch
    assert names["out_s"].feats[-1].shape[1] == 16 and names["out_t"].feats[-1].shape[1] == 64
    assert set(method.wcord.terms) == {"gckt", "lckt"}
    steps = 5 * len(names["batches"])
    assert int(method.wcord.contrast.sampler.step) == steps


def test_the_methods_with_a_stage_of_their_own_are_the_three_that_pre_train():
    net, images, labels = models.create("resnet8", num_classes=10), torch.rand(2, 3, 32, 32), torch.arange(8) % 2
    staged = set()
    for name in set(distill.names()) - {"crd", "wcord", "gckt", "lckt"}:
        method = distill.create(name, student=net, teacher=net, example=images, num_data=8, labels=labels)
        if method.stage is not None:
            staged.add(name)
    assert staged == {"ab", "fsp", "ft"}
