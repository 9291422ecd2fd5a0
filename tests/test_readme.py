"""The README's examples run as they stand."""

import re
from pathlib import Path

import torch

from wcord_fast import data
from wcord_fast.train.evaluate import evaluate

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
