"""ResNet-18/34 and Inception-v3 on torchvision's layers: sizes, taps, equality with torchvision, and its absence."""

import sys

import pytest
import torch

from wcord_fast import models
from wcord_fast.cli.main import main
from wcord_fast.models.torchvision_import import torchvision_models

from .rank_pool import alone, run_code


@pytest.fixture(scope="module")
def tv():
    try:
        return torchvision_models("these tests")
    except ImportError as error:
        pytest.skip(str(error))


PARAMETERS = {"resnet18": 11_689_512, "resnet34": 21_797_672, "inception_v3": 23_834_568}  # with 1000 classes
WIDTHS = {
    "resnet18": (64, 64, 128, 256, 512),
    "resnet34": (64, 64, 128, 256, 512),
    "inception_v3": (192, 288, 768, 2048),
}
SIDES = {
    "resnet18": (64, (16, 16, 8, 4, 2)),
    "resnet34": (64, (16, 16, 8, 4, 2)),
    "inception_v3": (107, (11, 11, 5, 2)),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_and_width(tv, name):
    with torch.device("meta"):
        net = models.create(name, num_classes=1000)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]
    assert net.feature_dim == WIDTHS[name][-1] and net.head.out_features == 1000
    own = getattr(tv, name)(weights=None, **({"aux_logits": False, "init_weights": False} if "v3" in name else {}))
    assert list(net.state_dict()) == list(own.state_dict())


@pytest.mark.parametrize("name", ["resnet18", "inception_v3"])
@torch.no_grad()
def test_logits_and_stage_features_equal_torchvision(tv, name):
    """Batch norms off the identity, so that a missing layer shows."""
    torch.manual_seed(0)
    net = models.create(name, num_classes=7).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, std=0.1)
    options = {"aux_logits": False, "init_weights": False} if "v3" in name else {}
    own = getattr(tv, name)(weights=None, num_classes=7, **options).eval()
    own.load_state_dict(net.state_dict())
    size, sides = SIDES[name]
    x = torch.randn(2, 3, size, size)
    features, logits = net(x, return_features=True)
    torch.testing.assert_close(logits, own(x), rtol=1e-5, atol=1e-5)
    assert [tuple(f.shape[1:]) for f in features] == [
        *((c, s, s) for c, s in zip(WIDTHS[name], sides, strict=True)),
        (WIDTHS[name][-1],),
    ]
    seen = []
    stages = ("Mixed_5d", "Mixed_6e", "Mixed_7c") if "v3" in name else ("layer1", "layer2", "layer3", "layer4")
    for stage in stages:
        own.get_submodule(stage).register_forward_hook(lambda _m, _i, output: seen.append(output))
    own(x)
    for feature, stage in zip(features[1:-1], seen, strict=True):
        torch.testing.assert_close(feature, stage, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_taps_before_the_activation(tv):
    net = models.create("resnet34", num_classes=3).eval()
    x = torch.randn(1, 3, 40, 40)
    after, logits = net(x, return_features=True)
    before, same = net(x, return_features=True, preact=True)
    assert torch.equal(logits, same)
    for a, b in zip(after[1:-1], before[1:-1], strict=True):
        assert torch.equal(a, b.relu()) and bool((b < 0).any())
    with pytest.raises(ValueError, match=r"preact: Inception-v3 joins"):
        models.create("Inception_V3", num_classes=2).eval()(
            torch.randn(1, 3, 75, 75), return_features=True, preact=True
        )


def test_other_channels_and_least_sizes(tv):
    assert models.create("resnet18", num_classes=2, in_channels=2).eval()(torch.randn(1, 2, 16, 16)).shape == (1, 2)
    net = models.create("inception_v3", num_classes=2, in_channels=1).eval()
    assert net(torch.randn(1, 1, 75, 75)).shape == (1, 2)
    with pytest.raises(ValueError, match="at least 75x75, got 74x80"):
        net(torch.randn(1, 1, 74, 80))


def test_dropout_is_between_the_features_and_the_logits(tv):
    """In training the penultimate feature is undisturbed: losses on it see no dropout."""
    torch.manual_seed(0)
    net = models.create("inception_v3", num_classes=4).eval()
    x = torch.randn(1, 3, 75, 75)
    still, _ = net(x, return_features=True)
    net.dropout.train()
    features, logits = net(x, return_features=True)
    assert torch.equal(features[-1], still[-1])
    assert not torch.allclose(logits, net.fc(features[-1]))


def test_missing_operators_are_declared(tmp_path):
    """A torchvision that fails in import as PyPI's does beside PyTorch's CPU wheel."""
    (tmp_path / "torchvision" / "models").mkdir(parents=True)
    register = "import torch\nfor op in ('nms', 'qnms'):\n"
    register += "    torch.library.register_fake(f'torchvision::{op}')(lambda *a: 0)\n"
    (tmp_path / "torchvision" / "__init__.py").write_text(register)
    (tmp_path / "torchvision" / "models" / "__init__.py").write_text("marker = 'imported'\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]);"
    code += "from wcord_fast.models.torchvision_import import torchvision_models as m; print(m('resnet18').marker)"
    done = alone(tmp_path, run_code, code, str(tmp_path))
    assert done.stdout == "imported\n", done.stderr
    (tmp_path / "torchvision" / "__init__.py").write_text(register.replace("'qnms'", "'other'"))
    done = alone(tmp_path, run_code, code, str(tmp_path))
    assert "ImportError: resnet18 needs torchvision, and the one here does not fit PyTorch" in done.stderr


def test_without_torchvision_the_extra_is_named(monkeypatch, capsys):
    for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)

    class Nowhere:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")

    monkeypatch.setattr(sys, "meta_path", [Nowhere(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"inception_v3 needs torchvision.*pip install 'wcord-fast\[torchvision\]'"):
        models.create("inception-v3")
    assert main(["distill", "--student=resnet18", "--dry-run"]) == 2
    output = capsys.readouterr().err
    assert output.startswith("wcord-fast distill: student: resnet18 needs torchvision") and "[torchvision]" in output
