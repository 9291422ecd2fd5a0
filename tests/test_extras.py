"""Without the extra `train` everything except the driver works, and the driver names the extra."""

from __future__ import annotations

import json
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


COMMAND = "import sys; from wcord_fast.cli.main import main; sys.exit(main(%r))"
# Of each: the modules that cannot be imported, and the code.
PROGRAMS = {
    "methods": (list(TRAIN), METHODS),
    "distill": (list(TRAIN), COMMAND % ["distill", "--epochs=3"]),
    "evaluate": (["tqdm"], COMMAND % ["evaluate", "run"]),
    "others": (
        list(TRAIN),
        """
from wcord_fast.cli.main import main
for argv in (["--version"], ["--help"], ["info"]):
    print("code", main(argv))
""",
    ),
    "digits": (["sklearn"], "import wcord_fast.data as d; d.load('digits')"),
    "imports": (
        [],
        "import sys, wcord_fast.cli.main; print('sklearn' in sys.modules, 'matplotlib' in sys.modules)",
    ),
}
# Forks from one interpreter, since importing PyTorch takes longer than the programs.
FORK = """
import json, os, sys, torch
programs, folder = json.loads(sys.argv[1]), sys.argv[2]
for name, (lacking, code) in programs.items():
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(f"{folder}/{name}{stream}", os.O_CREAT | os.O_WRONLY), stream)
        sys.modules.update(dict.fromkeys(lacking))
        exec(code, {})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Each of PROGRAMS when it has ended."""
    folder = tmp_path_factory.mktemp("programs")
    command = [sys.executable, "-c", FORK, json.dumps(PROGRAMS), str(folder)]
    codes = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return {
        name: subprocess.CompletedProcess(name, int(code), *((folder / f"{name}{n}").read_text() for n in (1, 2)))
        for name, code in zip(PROGRAMS, codes, strict=True)
    }


def test_losses_methods_and_models_need_torch_and_numpy_only(ended):
    assert ended["methods"].returncode == 0, ended["methods"].stderr


def test_driver_without_its_extra_names_it(ended):
    done = ended["distill"]
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout, done
    assert done.stderr.startswith("wcord-fast distill: ") and "pip install 'wcord-fast[train]'" in done.stderr
    for package in TRAIN.values():
        assert package in done.stderr
    alone = ended["evaluate"]
    assert alone.returncode == 2 and "tqdm" in alone.stderr and "pillow" not in alone.stderr


def test_losses_work_without_the_driver_extra(ended):
    done = ended["others"]
    version, overview, information, rest = done.stdout.split("code 0\n")
    assert done.returncode == 0 and not rest, done
    assert version.startswith("wcord-fast ") and "COMMAND" in overview and "threads:" in information, done.stdout


def test_scikit_learn_is_imported_for_the_digits_only(ended):
    assert "scikit-learn" in ended["digits"].stderr.splitlines()[-1]
    assert ended["imports"].stdout.split() == ["False", "False"], ended["imports"].stderr


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
