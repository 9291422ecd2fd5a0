"""Weights of other programs' checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from wcord_fast import models
from wcord_fast.models import find_state_dict, load_weights

NAMES = ("resnet20", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2")


def formats(state):
    """Synthetic checkpoints in the published formats."""
    distiller = {f"module.student.{k}": v for k, v in state.items()}
    return {
        "plain": state,
        "RepDistiller": {"epoch": 240, "model": state, "best_acc": torch.tensor(72.3), "optimizer": {"state": {}}},
        "mdistiller": {"model": state},
        "mdistiller's distiller": {
            "epoch": 240,
            "model": distiller | {"module.teacher.fc.weight": torch.zeros(3), "module.crd_loss.embed": torch.ones(1)},
            "optimizer": {},
            "best_acc": 72.3,
        },
        "DataParallel": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        "compiled": {f"model.module.{k}": v for k, v in state.items()},
    }


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_of_other_programs(name):
    torch.manual_seed(0)
    source = models.create(name, 5).state_dict()
    for kind, value in formats(source).items():
        torch.manual_seed(1)
        net = models.create(name, 5)
        load_weights(net, value)
        assert all(torch.equal(v, source[k]) for k, v in net.state_dict().items()), kind


def test_what_holds_no_weights_is_refused():
    net = models.create("resnet8", 5)
    before = copy.deepcopy(net.state_dict())
    for value in (3, {}, {"epoch": 3}, {"model": {}}, {"a": "b"}, [torch.ones(1)]):
        assert find_state_dict(value) is None
        with pytest.raises(ValueError, match="holds no state dict"):
            load_weights(net, value)
    with pytest.raises(ValueError, match=r"'fc.weight' is \[7, 64\], not \[5, 64\]"):
        load_weights(net, models.create("resnet8", 7).state_dict())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(ValueError, match=r"no .conv1.weight. in it; .* and \d+ more"):
        load_weights(net, {"fc.weight": torch.ones(1)})


def test_a_prefix_of_the_networks_own_stays():
    class Wrapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(2, 3)

    source = Wrapping().state_dict()
    for value in (source, {"state_dict": source}, {f"module.{k}": v for k, v in source.items()}):
        net = Wrapping()
        load_weights(net, value)
        assert torch.equal(net.model.weight, source["model.weight"])
    with pytest.raises(ValueError, match=r"no 'model.bias' in it$"):
        load_weights(Wrapping(), {"model.weight": source["model.weight"]})
