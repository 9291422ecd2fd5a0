"""Without the extra `train` everything except the driver works, and the driver names the extra."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from wcord_fast.extras import TRAIN, MissingExtra, require_train

ROOT = Path(__file__).resolve().parents[1]
METHODS = """
import torch
from wcord_fast import CRDLoss, OTLoss, WCoRDLoss, distill, explain, functional, info, models, nn

student, teacher = models.create("resnet8", 10), models.create("resnet14", 10).eval()
images = torch.randn(4, 3, 32, 32)
labels = torch.arange(40) % 10
batch = distill.Batch(images, labels[:4], torch.arange(4))
out = [distill.Outputs(*net(images, return_features=True)) for net in (student, teacher)]
for name in distill.names():
    method = distill.create(
        name, student=student, teacher=teacher, example=images, num_data=40, labels=labels,
    )
    if method.fills_banks:
        method.fill_banks(*out, torch.arange(4))
        method.banks_filled()
    assert torch.isfinite(method(*out, batch).value), name
assert "wcord_fast" in info() and OTLoss()(torch.eye(4), -torch.eye(4)) > 0.5
"""


def slim(code: str, *lacking: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a Python in which `lacking`, by default all of the extra's modules, cannot be imported."""
    before = f"import sys; sys.modules.update(dict.fromkeys({list(lacking or TRAIN)!r})); "
    return subprocess.run([sys.executable, "-c", before + code], cwd=ROOT, capture_output=True, text=True)


def command(*argv: str, lacking: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return slim(f"from wcord_fast.cli.main import main; sys.exit(main({list(argv)!r}))", *lacking)


def test_losses_methods_and_models_need_torch_and_numpy_only():
    done = slim(METHODS)
    assert done.returncode == 0, done.stderr


def test_driver_without_its_extra_names_it():
    done = command("distill", "--epochs=3")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout, done
    assert done.stderr.startswith("wcord-fast distill: ") and "pip install 'wcord-fast[train]'" in done.stderr
    for package in TRAIN.values():
        assert package in done.stderr
    alone = command("evaluate", "run", lacking=("tqdm",))
    assert alone.returncode == 2 and "tqdm" in alone.stderr and "pillow" not in alone.stderr


def test_losses_work_without_the_driver_extra():
    """All three in one process, which costs one import of PyTorch."""
    code = """
from wcord_fast.cli.main import main
for argv in (["--version"], ["--help"], ["info"]):
    print("code", main(argv))
"""
    done = slim(code)
    version, overview, information, rest = done.stdout.split("code 0\n")
    assert done.returncode == 0 and not rest, done
    assert version.startswith("wcord-fast ") and "COMMAND" in overview and "threads:" in information, done.stdout


def test_scikit_learn_is_imported_for_the_digits_only():
    code = "import wcord_fast.data as d; "
    assert "scikit-learn" in slim(code + "d.load('digits')", "sklearn").stderr.splitlines()[-1]
    done = slim("import wcord_fast.cli.main; print('sklearn' in sys.modules, 'matplotlib' in sys.modules)", "nothing")
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_list_of_extras_equals_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        key: {re.match(r"[\w-]+", line)[0] for line in lines} for key, lines in project["optional-dependencies"].items()
    }
    assert names["train"] == set(TRAIN.values())
    assert {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]} == {"torch", "numpy"}
    assert "wcord-fast[train]" in project["optional-dependencies"]["test"]


def test_only_missing_packages_are_named():
    require_train("this", "PIL", "yaml")
    with pytest.raises(KeyError):
        require_train("this", "no_such_module")
    assert issubclass(MissingExtra, ImportError)
