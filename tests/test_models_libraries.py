"""Networks of timm, torchvision and Hugging Face by name; the libraries' own answers are the oracles."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
from importlib.util import find_spec

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is not in the cache is an error at once

import pytest
import torch

from wcord_fast import distill, models
from wcord_fast.cli.main import main
from wcord_fast.models import WeightsUnavailable
from wcord_fast.models.libraries import _library

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def needs(prefix):
    try:
        _library(prefix)
    except ImportError as error:
        return pytest.mark.skipif(True, reason=str(error))
    return pytest.mark.skipif(False, reason="")


timm, torchvision, hf = needs("timm"), needs("torchvision"), needs("hf")
NAMED = [
    pytest.param("timm:test_resnet", marks=timm),
    pytest.param("timm:test_convnext", marks=timm),
    pytest.param("timm:test_vit@32", marks=timm),
    pytest.param("timm:swin_tiny_patch4_window7_224@64", marks=[timm, pytest.mark.slow]),
    pytest.param("torchvision:mobilenet_v3_small", marks=torchvision),
    pytest.param("torchvision:resnet18", marks=torchvision),
    pytest.param("torchvision:vit_b_16@32", marks=[torchvision, pytest.mark.slow]),
    pytest.param("hf:tiny", marks=hf),
    pytest.param("hf:tiny@48", marks=hf),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder with a small ViT of three classes."""
    if find_spec("transformers") is None:
        return None
    import transformers

    torch.manual_seed(1)
    sizes = {"hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=3)
    path = tmp_path_factory.mktemp("hf") / "tiny"
    transformers.ViTForImageClassification(config).save_pretrained(path)
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def full(name, folder):
    return name.replace("hf:tiny", f"hf:{folder}")


@pytest.mark.parametrize("name", NAMED)
def test_logits_equal_the_library_with_its_normalisation(name, folder):
    torch.manual_seed(0)
    given_mean, given_std = (0.3,), (0.4,)
    net = models.create(full(name, folder), 7, in_channels=1, mean=given_mean, std=given_std).eval()
    pixels = torch.rand(2, 1, 24, 24)
    features, logits = net((pixels - 0.3) / 0.4, return_features=True)
    assert logits.shape == (2, 7) and features[-1].shape == (2, net.feature_dim) and len(features) >= 4
    assert all(f.dim() == 4 for f in features[:-1])
    size = net.prepare.size or 32
    grown = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (net.prepare.mean, net.prepare.std))
    answer = net.network((grown.expand(-1, 3, -1, -1) - mean) / std)
    torch.testing.assert_close(getattr(answer, "logits", answer), logits, rtol=1e-4, atol=1e-5)
    assert set(net.state_dict()) == set(net.network.state_dict())
    if net.head is not None:
        torch.testing.assert_close(net.head(features[-1]), logits)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("method", ["wcord+kd", "at"])
def test_a_step_of_distillation_from_it(name, folder, method):
    torch.manual_seed(0)
    teacher = models.create(full(name, folder), 7, in_channels=1).eval().requires_grad_(False)
    student = models.create(full(name, folder), 7, in_channels=1)
    x, labels = torch.randn(4, 1, 32, 32), torch.arange(12) % 7
    options = {"num_negatives": 4} if "wcord" in method else {}
    loss = distill.create(method, student=student, teacher=teacher, example=x, num_data=12, labels=labels, **options)
    outputs = [distill.Outputs(*net(x, return_features=True)) for net in (student, teacher)]
    loss(*outputs, distill.Batch(x, labels[:4], torch.arange(4))).value.backward()
    assert sum(float(p.grad.abs().sum()) for p in student.parameters() if p.grad is not None) > 0


@hf
def test_a_model_that_was_saved_without_its_processor_has_the_normalisation_of_imagenet(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "alone")
    (tmp_path / "alone" / "preprocessor_config.json").unlink()
    assert models.create(f"hf:{tmp_path / 'alone'}", 3).prepare.mean == (0.485, 0.456, 0.406)
    assert "has no preprocessor_config.json" in caplog.text


@hf
def test_pretrained_weights_of_a_folder(folder):
    import transformers

    saved = transformers.ViTForImageClassification.from_pretrained(folder).state_dict()
    own = models.create(f"hf:{folder}", 3, pretrained=True)
    assert all(torch.equal(own.state_dict()[key], value) for key, value in saved.items())
    assert own.prepare.mean == (0.1, 0.2, 0.3) and own.prepare.size == 32 and own.training
    other = models.create(f"hf:{folder}", 5, pretrained=True).state_dict()
    assert other["classifier.weight"].shape == (5, 24)
    assert all(torch.equal(other[key], value) for key, value in saved.items() if "classifier" not in key)
    fresh = models.create(f"hf:{folder}", 3).state_dict()
    assert not torch.equal(fresh["vit.layernorm.weight"], torch.zeros(24))
    assert any(not torch.equal(fresh[key], value) for key, value in saved.items())


@timm
def test_unavailable_timm_weights_are_named():
    with pytest.raises(WeightsUnavailable, match="timm:resnet18: neither in the library's cache nor to be fetched"):
        models.create("timm:resnet18", pretrained=True)


@torchvision
def test_unavailable_torchvision_weights_are_named(monkeypatch, tmp_path):
    def refused(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    with pytest.raises(WeightsUnavailable, match=r"torchvision:resnet18: neither .*no route"):
        models.create("torchvision:resnet18", pretrained=True)


@torchvision
def test_torchvision_cached_weights_load_except_for_a_different_head(monkeypatch):
    from torchvision.models import ResNet18_Weights, resnet18

    torch.manual_seed(5)
    saved = resnet18().state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, **_: saved)
    net = models.create("torchvision:resnet18", 10, pretrained=True)
    assert torch.equal(net.state_dict()["layer4.0.conv1.weight"], saved["layer4.0.conv1.weight"])
    assert net.num_classes == 10 and net.prepare.size == 224 and net.prepare.mean == MEAN


@hf
def test_unavailable_repository_is_named():
    with pytest.raises(WeightsUnavailable, match="hf:nobody/nothing: neither"):
        models.create("hf:nobody/nothing")
    with pytest.raises(ValueError, match="pretrained: expected a repository or a folder behind 'hf:', got the arch"):
        models.create("hf:vit", pretrained=True)


@pytest.mark.parametrize(
    "name, words",
    [
        ("tim:resnet18", "did you mean 'timm'"),
        ("timm:resnet18@", "expected a number of pixels behind '@', got 'timm:resnet18@'"),
        ("timm:resnet18@0", "expected a number of pixels behind '@'"),
        pytest.param("timm:resnet81", "timm has no network 'resnet81'; did you mean 'timm:resnet", marks=timm),
        pytest.param("torchvision:resnet81", "torchvision has no network 'resnet81'", marks=torchvision),
        pytest.param("hf:convnex", "transformers has no network 'convnex'; did you mean 'hf:convnext'", marks=hf),
    ],
)
def test_unknown_names_suggest_the_nearest(name, words):
    for function in (models.create, models.require_known):
        with pytest.raises(ValueError, match=words):
            function(name)


def test_options_of_a_library_are_refused_elsewhere():
    with pytest.raises(ValueError, match="pretrained: goes with a library's network"):
        models.create("resnet8", pretrained=True)
    with pytest.raises(ValueError, match="features: goes with a library's network"):
        models.create("resnet8", features=["layer1"])


@timm
def test_the_command_distils_from_a_transformer_to_a_convolutional_network(tmp_path, capsys):
    where = ["--output-dir", str(tmp_path)]
    small = [
        "--data=digits",
        "--teacher=timm:test_vit@32",
        "--student=timm:test_resnet",
        "--limit-train=96",
        "--batch-size=32",
    ]
    command = ["distill", *where, *small, "--methods=wcord", "--epochs=1", "--teacher-epochs=1", "--quiet"]
    assert main([*command, "--no-tensorboard", "--wcord.num-negatives=32"]) == 0
    assert "timm:test_resnet" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "wcord"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    last = torch.load(tmp_path / "wcord" / "checkpoint.pt", weights_only=True)["history"][-1]
    assert report["model"] == "timm:test_resnet" and report["top1"] == last["test_top1"]
    file = tmp_path / "student.safetensors"
    assert main(["export", str(tmp_path / "wcord"), "--format=safetensors", f"--output={file}"]) == 0


@timm
def test_the_command_lists_the_taps(capsys):
    assert main(["taps", "timm:test_vit@32", "--channels=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("timm:test_vit@32: 32x32 pixels to 100 classes") and "patch_embed.proj" in lines[3]
    assert "blocks." in lines[4] and "map1" in lines[4] and lines[-1].split()[-2:] == ["[B,", "64]"]


def test_the_command_lists_the_modules_of_our_own_networks(capsys):
    assert main(["taps", "resnet8", "--image-size=16", "--modules"]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.splitlines()[-1].split() == ["4", "f4", "[B,", "64]"]
    assert any(line.split()[:1] == ["layer3"] and "[B, 64, 4, 4]" in line for line in second.splitlines())
    assert main(["taps", "resnet9"]) == 2 and "did you mean" in capsys.readouterr().err
