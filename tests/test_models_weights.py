"""Weights from files of other programs: their place in a file, prefixes of their names, other entries."""

from __future__ import annotations

import argparse
import collections
import copy
import pathlib
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from wcord_fast import models
from wcord_fast.models import Tapped, find_state_dict, load_weights
from wcord_fast.train import checkpoint
from wcord_fast.train.checkpoint import CheckpointError

NAMES = ("resnet20", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2")


class Settings(dict):
    """A configuration that is a dict with attributes, as EasyDict and mmcv's are."""


class Items(list):
    """A list of a class of its own."""


class Whole(nn.Module):
    """A network that is saved whole, with something that is no part of its state dict."""

    def __init__(self, network):
        super().__init__()
        self.network, self.activation = network, torch.relu
        self.register_buffer("unsaved", torch.ones(2), persistent=False)


def before(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def formats(state):
    """Checkpoints in the formats that people meet."""
    beside = {"criterion.weight": torch.ones(3), "loss.bank": torch.ones(5, 2)}
    counted = dict(state)
    for key in [k for k in state if k.endswith("weight")]:
        for count in ("total_ops", "total_params"):
            counted[f"{key.rpartition('.')[0]}.{count}"] = torch.zeros(1, dtype=torch.float64)
    no_counts = {key: value for key, value in state.items() if "num_batches" not in key}
    distiller = before("module.student.", state) | {"module.teacher.fc.weight": torch.zeros(3)}
    inside = {key.replace(".", ".module.", 1): value for key, value in state.items()}
    return {
        "plain": state,
        "RepDistiller": {"epoch": 240, "model": state, "best_acc": torch.tensor(72.3), "optimizer": {"state": {}}},
        "RepDistiller's last": {"opt": argparse.Namespace(model="resnet8"), "model": state, "optimizer": {}},
        "numpy beside": {
            "model": state,
            "best_acc": np.float64(70.1),
            "curve": np.arange(3),
            "path": pathlib.Path("a"),
        },
        "mdistiller's distiller": {"epoch": 240, "model": distiller | {"module.crd_loss.embed": torch.ones(1)}},
        "model_state_dict": {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {}},
        "DataParallel": {"state_dict": before("module.", state)},
        "DataParallel inside": inside,
        "compiled": before("_orig_mod.", state),
        "DDP and compile": before("module._orig_mod.", state),
        "compiled inside": {key.replace(".", "._orig_mod.", 1): value for key, value in state.items()},
        "Lightning": {"state_dict": before("net.", state), "callbacks": {"a": {"best": torch.tensor(1.0)}}},
        "Lightning and others": {"state_dict": before("model.", state) | beside},
        "backbone": {"state_dict": before("backbone.", state), "meta": {"env": "x"}},
        "mmcv": {"meta": Settings(a=1), "state_dict": collections.OrderedDict(before("module.backbone.", state))},
        "EMA": {"model_ema": before("module.", state), "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        "AveragedModel": {"n_averaged": torch.tensor(4), **before("module.", state)},
        "dict of another class": Settings(model=Settings(state), list=Items([1, 2])),
        "defaultdict": collections.defaultdict(list, {"model": collections.defaultdict(list, state)}),
        "thop": counted,
        "without counters": no_counts,
        "deep": {"a": {"b": {"c": before("d.e.", state)}}},
        "half": {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
        "parameters": {"state_dict": {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()}},
    }


def kinds():
    return list(formats({"fc.weight": torch.ones(1)}))


@pytest.mark.parametrize("how", ["", "zip", "legacy"])
@pytest.mark.parametrize("kind", kinds())
def test_checkpoints_of_other_programs_load(tmp_path, kind, how):
    torch.manual_seed(0)
    source = models.create("resnet8", 5).state_dict()
    value = formats(source)[kind]
    if how:
        torch.save(value, tmp_path / "t.pth", _use_new_zipfile_serialization=how == "zip")
        value = checkpoint.read(tmp_path / "t.pth")
    torch.manual_seed(1)
    net = models.create("resnet8", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(net, value)
    tolerance = 1e-3 if kind == "half" else 0
    torch.testing.assert_close(dict(net.state_dict()), dict(source), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_weights_load_into_every_family(name):
    torch.manual_seed(0)
    source = models.create(name, 5).state_dict()
    for kind in ("plain", "Lightning and others", "DataParallel inside", "mmcv", "thop"):
        torch.manual_seed(1)
        net = models.create(name, 5)
        load_weights(net, formats(source)[kind])
        assert all(torch.equal(v, source[k]) for k, v in net.state_dict().items()), kind


def test_pickled_module_loads_as_its_state_dict(tmp_path):
    source = models.create("resnet8", 5)
    torch.save({"net": Whole(source), "epoch": 3}, tmp_path / "whole.pt")
    value = checkpoint.read(tmp_path / "whole.pt")
    assert set(value["net"]) == set(before("network.", source.state_dict()))
    net = models.create("resnet8", 5)
    load_weights(net, value)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in net.state_dict().items())
    assert not any(v.requires_grad for v in value["net"].values())


def test_safetensors(tmp_path):
    source = models.create("resnet8", 5).state_dict()
    for name in ("a.safetensors", "b.pth"):
        safetensors.torch.save_file(before("model.", source), tmp_path / name)
        net = models.create("resnet8", 5)
        load_weights(net, checkpoint.read(tmp_path / name))
        assert all(torch.equal(v, source[k]) for k, v in net.state_dict().items())
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"a.safetensors: damaged"):
        checkpoint.read(tmp_path / "a.safetensors")


class Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_in_a_foreign_file_is_run(tmp_path, legacy):
    import os
    import subprocess

    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()"
    for function, argument, refused in (
        (eval, code, True),
        (exec, code, True),
        (os.mkdir, str(mark), True),
        (subprocess.check_call, ["mkdir", str(mark)], True),
        (pathlib.Path.touch, pathlib.Path(mark), None),  # by getattr, which is not called either
        (np.save, str(mark), False),
        (torch.hub.load_state_dict_from_url, str(mark), False),
    ):
        value = {"model": {"w": torch.ones(1)}, "x": Calls(function, argument)}
        torch.save(value, tmp_path / "f.pt", _use_new_zipfile_serialization=not legacy)
        try:
            actual = checkpoint.read(tmp_path / "f.pt")
        except CheckpointError as error:
            assert refused is not False, error
        else:
            assert not refused and torch.equal(actual["model"]["w"], torch.ones(1))
        assert not mark.exists() and not mark.with_suffix(".npy").exists()


def test_file_without_weights_is_refused():
    net = models.create("resnet8", 5)
    state = copy.deepcopy(net.state_dict())
    for value in (3, {}, {"epoch": 3}, {"model": {}}, {"a": "b"}, [torch.ones(1)]):
        assert find_state_dict(value) is None
        with pytest.raises(ValueError, match="holds no state dict"):
            load_weights(net, value)
    for name in ("a.pt", pathlib.Path("a.pt")):
        with pytest.raises(TypeError, match=r"value: expected the content of a file, got the name 'a[.]pt'"):
            load_weights(net, name)
    with pytest.raises(ValueError, match=r"'fc.weight' is \[7, 64\], not \[5, 64\]"):
        load_weights(net, models.create("resnet8", 7).state_dict())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert list(find_state_dict({"lr": torch.ones(1), "model": before("module.", state)})) == list(state)


def test_mismatch_names_the_keys_of_the_file():
    net, other = models.create("resnet8", 5), models.create("resnet14", 5).state_dict()
    few = {"fc.weight": torch.ones(5, 64), "stem.weight": torch.ones(1)}
    for value, message in (
        (few, r"no 'conv1.weight' in it; .* and \d+ more. .* 1 of the network's \d+ keys; .* 'fc.weight', 'stem"),
        ({"state_dict": before("m.", few)}, r"under 'state_dict.m.' have 1 of .* 'm.fc.weight', 'm.stem"),
        ({"a": {"x.y": torch.ones(1)}}, r"under 'a.' have 0 of the network's \d+ keys; their keys are 'x.y'$"),
        (before("net.", other), r"'layer1.1.conv1.weight' is not of this network.* under 'net.'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(net, value)


def test_first_of_two_networks_in_a_file_is_loaded_and_the_other_named():
    """A message names the network that was not loaded."""
    torch.manual_seed(0)
    one, two = (models.create("resnet8", 5).state_dict() for _ in range(2))
    for value, taken, message in (
        ({"model": one, "model_ema": two}, one, "under 'model.', not those under 'model_ema.'"),
        (
            {"student": one, "teacher": before("module.", two)},
            one,
            "under 'student.', not those under 'teacher.module.'",
        ),
        (before("net.", two) | before("ema.", one), two, "under 'net.', not those under 'ema.'"),
        (one | before("teacher.", two), one, "under '', not those under 'teacher.'"),
        ({"model": one, "best": dict(one)}, one, None),  # these weights twice
    ):
        net = models.create("resnet8", 5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_weights(net, value)
        assert [message in str(w.message) for w in caught] == ([True] if message else [])
        assert all(torch.equal(v, taken[k]) for k, v in net.state_dict().items())


def test_wrapped_networks_are_loaded_into():
    source = models.create("resnet8", 5).state_dict()
    for wrap in (nn.DataParallel, torch.compile, lambda net: Tapped(net, "layer1")):
        net = models.create("resnet8", 5)
        load_weights(wrap(net), {"state_dict": before("module.", source)})
        assert all(torch.equal(v, source[k]) for k, v in net.state_dict().items())


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
    with pytest.raises(ValueError, match=r"does not fit: no 'model.bias' in it\. "):
        load_weights(Wrapping(), {"model.weight": source["model.weight"]})
