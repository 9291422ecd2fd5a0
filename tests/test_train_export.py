"""Exported files compute the outputs of the checkpoint's network, hold its metadata, and are whole or absent."""

import dataclasses
import json
import os
import sys

import pytest
import torch

from wcord_fast import models
from wcord_fast.cli import export, export_formats
from wcord_fast.cli import trained_network as trained
from wcord_fast.cli.config import Config
from wcord_fast.cli.main import main
from wcord_fast.cli.workbench import Workbench
from wcord_fast.train import checkpoint, files

TINY = {"image_size": 8, "batch_size": 10, "tensorboard": False, "quiet": True, "epochs": 1, "limit_train": 40}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("export")
    bench = Workbench(Config(**TINY, teacher="resnet8", student="resnet8", output_dir=str(directory)))
    bench.student("ce", None)
    return directory / "ce"


@pytest.fixture(scope="module")
def images():
    return torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def logits(run, images):
    """Logits of the trained weights, on images normalised by hand."""
    network = models.create("resnet8", 10, in_channels=1)
    network.load_state_dict(torch.load(run / "student.pt", weights_only=True))
    data = Workbench(Config(**TINY)).data
    with torch.no_grad():
        return network.eval()((images - data.mean[0]) / data.std[0])


def exported(run, path, form, *options):
    assert main(["export", str(run), f"--format={form}", f"--output={path}", *options]) == 0
    return path


def normalised(images, metadata):
    return (images - metadata["mean"][0]) / metadata["std"][0]


def check_metadata(metadata):
    assert metadata["model"] == "resnet8" and metadata["method"] == "ce" and metadata["epoch"] == 1
    assert metadata["classes"] == [str(digit) for digit in range(10)] and metadata["image_shape"] == [1, 8, 8]


def test_state_dict(run, tmp_path, images, logits, capsys):
    path = exported(run, tmp_path / "new" / "net.pt", "state_dict")
    assert "largest difference of a logit from the checkpoint's network: 0 (8 random images)" in capsys.readouterr().out
    content = torch.load(path, weights_only=True)
    check_metadata(content["metadata"])
    network = models.create("resnet8", 10, in_channels=1)
    models.load_weights(network, content)  # also what --teacher-checkpoint takes
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(normalised(images, content["metadata"])), logits)
    assert main(["export", str(run / "checkpoint.pt")]) == 0
    assert (run / "resnet8.pt").is_file()


def test_safetensors(run, tmp_path, images, logits):
    from safetensors import safe_open

    path = exported(run, tmp_path / "net.safetensors", "safetensors")
    with safe_open(path, framework="pt") as file:
        entries = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text = ("model", "method", "input", "wcord_fast")
    metadata = {name: value if name in text else json.loads(value) for name, value in entries.items()}
    check_metadata(metadata)
    network = models.create("resnet8", 10, in_channels=1)
    network.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(normalised(images, metadata)), logits)


def test_torch_export_with_the_normalisation_in_it(run, tmp_path, images, logits):
    path = exported(run, tmp_path / "net.pt2", "torch.export", "--with-normalisation")
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    metadata = json.loads(extra["metadata.json"])
    check_metadata(metadata)
    assert metadata["input"] == "pixels in [0, 1]"
    for n in (7, 1):
        torch.testing.assert_close(program(images[:n]), logits[:n])


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnx.reference"])
def test_onnx(run, tmp_path, images, logits, runtime, monkeypatch, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip(runtime)
    if runtime == "onnx.reference":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = exported(run, tmp_path / "net.onnx", "onnx")
    assert "largest difference" in capsys.readouterr().out
    model = onnx.load(path)
    onnx.checker.check_model(model)
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata["model"] == "resnet8" and json.loads(metadata["image_shape"]) == [1, 8, 8]
    run_again = export_formats.FORMATS["onnx"].read(path.read_bytes(), None)
    metadata = {name: json.loads(metadata[name]) for name in ("mean", "std")}
    for n in (7, 1):
        torch.testing.assert_close(run_again(normalised(images[:n], metadata)), logits[:n], rtol=1e-4, atol=1e-5)


def test_without_onnx_the_extra_is_named(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(run), "--format=onnx", f"--output={tmp_path / 'net.onnx'}"]) == 1
    output = capsys.readouterr().err
    assert "needs the packages onnx and onnxscript" in output and 'pip install "wcord-fast[onnx]"' in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["weights", "nan", "shape"])
def test_a_file_that_computes_something_else_is_never_written(run, tmp_path, monkeypatch, capsys, damage):
    form = export_formats.FORMATS["torch.export"]

    def other(content, fresh):
        network = form.read(content, fresh)
        changed = {"weights": lambda y: y + 0.01, "nan": lambda y: y * torch.nan, "shape": lambda y: y[:, :1]}[damage]
        return lambda images: changed(network(images))

    monkeypatch.setitem(export_formats.FORMATS, "torch.export", dataclasses.replace(form, read=other))
    (tmp_path / "net.pt2").write_text("the earlier one")
    assert main(["export", str(run), "--format=torch.export", f"--output={tmp_path / 'net.pt2'}"]) == 1
    assert "the exported file gives other logits than the network" in capsys.readouterr().err
    assert (tmp_path / "net.pt2").read_text() == "the earlier one" and len(list(tmp_path.iterdir())) == 1


def test_exported_weights_must_be_bit_identical(run):
    form, loaded = export_formats.FORMATS["state_dict"], trained.load(run)
    rounded = form.write(loaded.network(1).bfloat16().float(), None, {})
    with pytest.raises(checkpoint.CheckpointError, match="gives other logits than the network"):
        export.difference(form, rounded, loaded.network(1), [torch.rand(2, 1, 8, 8)], loaded, 1)


def test_a_full_disk_leaves_the_earlier_file(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "net.pt").write_text("the earlier one")

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files._Writer, "write", full)
    assert main(["export", str(run), f"--output={tmp_path / 'net.pt'}"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "net.pt").read_text() == "the earlier one" and len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_of_an_older_version_takes_its_normalisation_from_the_data(run, tmp_path):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    wanted = state.pop("images")
    torch.save(state, tmp_path / "checkpoint.pt")
    assert trained.load(tmp_path).images(None) == wanted


def test_mistakes_in_options_are_named(run, tmp_path, capsys):
    for words, message in {
        ("--format=onx",): "did you mean 'onnx'?",
        ("--formt=onnx",): "unknown option '--formt'; did you mean '--format'?",
        ("--with-normalisation",): "a state_dict file holds weights only; use torch.export or onnx",
    }.items():
        assert main(["export", str(run), *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nothing")]) == 1
    assert main(["export", str(run.parent)]) == 1
    assert f"the runs in it: {run}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.prev.pt", "linked.pt"])
def test_a_checkpoint_is_not_written_over(run, tmp_path, capsys, name):
    if name == "linked.pt":
        (tmp_path / name).symlink_to(run / "checkpoint.pt")
    before = (run / "checkpoint.pt").read_bytes()
    path = tmp_path / name if name == "linked.pt" else run / name
    assert main(["export", str(run), f"--output={path}"]) == 2
    assert f"--output: {path} is the name of a checkpoint" in capsys.readouterr().err
    assert (run / "checkpoint.pt").read_bytes() == before


def test_a_pipe_is_not_replaced_by_a_file(run, tmp_path, capsys):
    """A rename would take /dev/null away from everybody."""
    os.mkfifo(tmp_path / "pipe")
    assert main(["export", str(run), f"--output={tmp_path / 'pipe'}"]) == 1
    assert capsys.readouterr().err == f"wcord-fast export: --output: cannot write {tmp_path}/pipe: not a regular file\n"
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_a_hugging_face_folder_is_read_back_with_its_weights(run, tmp_path, images, logits):
    folder = exported(run, tmp_path / "new" / "net", "hf")
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "resnet8" and config["image_size"] == [8, 8]
    assert config["id2label"]["3"] == "3" and config["method"] == "ce"
    for request in ({}, {"num_classes": 10, "in_channels": 1}):
        network = models.create(f"hf-folder:{folder}", **request).eval()
        with torch.no_grad():
            torch.testing.assert_close(
                network((images - config["image_mean"][0]) / config["image_std"][0]), logits, rtol=0, atol=0
            )
    history = checkpoint.load(run / "checkpoint.pt")["history"]
    card = (folder / "README.md").read_text()
    assert f"| test top-1, last epoch (%) | {history[-1]['test_top1']:.4g} |" in card
    assert "| epochs | 1 |" in card and "float32 [batch, 1, 8, 8]" in card
    code = card.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(folder))
    names = {"images": images}
    exec(code, names)
    assert names["logits"].shape == (7, 10)


def test_a_folder_that_is_there_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").touch()
    assert main(["export", str(run), "--format=hf", f"--output={tmp_path / 'mine'}"]) != 0
    assert "--output: cannot write" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["mine"] and os.listdir(tmp_path / "mine") == ["kept"]


def test_an_exported_folder_begins_another_run(run, tmp_path):
    folder = exported(run, tmp_path / "net", "hf")
    name = f"hf-folder:{folder}"
    bench = Workbench(Config(**TINY, teacher="resnet8", student=name, output_dir=str(tmp_path / "runs")))
    bench.student("ce", None)
    (again,) = (tmp_path / "runs").glob("ce")
    config = json.loads((exported(again, tmp_path / "again", "hf") / "config.json").read_text())
    assert config["architecture"] == "resnet8"  # not a folder that may be gone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "os.system"}, "code outside of this package"),
        ({"architecture": "hf-folder:."}, "code outside of this package"),
        ({"architecture": "resnet14"}, "model.safetensors"),
        ({"model_type": "vit"}, "model_type is 'vit'"),
        ({"image_size": 8}, "image_size"),
    ],
)
def test_another_folder_is_refused(run, tmp_path, change, message):
    folder = exported(run, tmp_path / "net", "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        models.create(f"hf-folder:{folder}")


def test_what_the_folder_does_not_have_is_refused(run, tmp_path):
    folder = exported(run, tmp_path / "net", "hf")
    with pytest.raises(ValueError, match="num_classes: expected 10"):
        models.create(f"hf-folder:{folder}", 5)
    with pytest.raises(ValueError, match="in_channels: expected 1"):
        models.create(f"hf-folder:{folder}", in_channels=3)
    (folder / "model.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"name: .*model\.safetensors"):
        models.create(f"hf-folder:{folder}")
    with pytest.raises(ValueError, match=r"expected a folder that holds config\.json"):
        models.create(f"hf-folder:{tmp_path / 'nowhere'}")


def test_safetensors_of_tied_weights(images):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Conv2d(1, 1, 3, padding=1)
            self.second, self.head = self.first, torch.nn.Linear(64, 10)

        def forward(self, x):
            return self.head(self.second(self.first(x)).flatten(1))

    network, form = Tied(), export_formats.FORMATS["safetensors"]
    read = form.read(form.write(network, images[:2], {}), Tied)
    assert torch.equal(read(images), network(images)) and read.first is read.second
