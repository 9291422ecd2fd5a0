"""The examples run as their first lines say, made small."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from wcord_fast import CRDLoss
from wcord_fast.models.torchvision_import import torchvision_models

from .crd_oracle import PublishedCRD
from .rank_pool import alone, launch, run_script

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SMALL = {
    "fit.py": ["--epochs", "2"],
    "replace_crd_loss.py": ["--epochs", "4", "--teacher-epochs", "1"],
    "repdistiller_step.py": ["--steps", "3"],
    "ot_between_batches.py": ["--steps", "60"],
    "two_tower.py": ["--epochs", "4"],
    "lightning_module.py": ["--epochs", "2", "--limit-train", "100"],
    "hf_trainer.py": ["--epochs", "2", "--limit-train", "100"],
    "accelerate_fsdp.py": ["--epochs", "2", "--limit-train", "100"],
    "library_networks.py": ["--epochs", "1", "--limit-train", "50"],
    "own_method.py": ["--epochs", "2", "--limit-train", "100"],
    "segmentation.py": ["--epochs", "2"],
    "ten_million_rows.py": ["--rows", "100000", "--negatives", "2048", "--steps", "2"],
}


@pytest.fixture
def output_of(tmp_path):
    """A function that runs an example by its name and returns what it prints.

    In forks that have imported PyTorch already, or in a new interpreter, if a launcher is named that starts it.
    """

    def output(name: str, *more: str, launcher: Sequence[str] = (), processes: int = 1) -> str:
        command = [str(EXAMPLES / name), *SMALL[name], *more]
        if processes > 1:
            ended = launch(processes, tmp_path, run_script, command)
            assert not any(ended.codes), ended.err
            return ended.out[0]
        if launcher:
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            program = [sys.executable, *launcher, *command]
            done = subprocess.run(program, env=env, capture_output=True, text=True, check=False)
        else:
            done = alone(tmp_path, run_script, command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return output


def some_of_cifar100(folder: Path) -> Path:
    """`folder` with an .npz of 3,000 training and 500 test images; skips where the packed set is missing."""
    packed = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (packed / "cifar100_data.py").exists():
        pytest.skip(f"{packed}: no packed CIFAR-100")
    spec = importlib.util.spec_from_file_location("cifar100_data", packed / "cifar100_data.py")
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    draws, arrays = np.random.default_rng(0), {}
    for split, (images, labels), count in (
        ("train", source.load_train(shards=(0,)), 3000),
        ("test", source.load_test(), 500),
    ):
        some = draws.permutation(len(images))[:count]
        arrays |= {f"{split}_images": images[some], f"{split}_labels": labels[some]}
    np.savez(folder / "cifar100.npz", **arrays)
    return folder


def require_importable(*modules: str) -> None:
    """Skip where one of them is missing, or finds a torchvision that was built for another torch than the one here."""
    for module in modules:
        pytest.importorskip(module.partition(".")[0])
    tried = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    if tried.returncode and "ModuleNotFoundError: No module named 'torchvision'" not in tried.stderr:
        pytest.skip(f"torchvision cannot be imported here: {tried.stderr.splitlines()[-1]}")


def test_every_example_has_a_test():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SMALL)
    pages = [page.read_text() for page in (EXAMPLES.parent / "docs").rglob("*.md")]
    assert set(re.findall(r'--8<-- "examples/(\w+\.py)"', "\n".join(pages))) == set(SMALL)


class Compared(CRDLoss):
    """CRDLoss, and RepDistiller's formulas in float64 on its weights, features and draws."""

    compared: ClassVar[list] = []

    def forward(self, f_s, f_t, idx, contrast_idx=None):
        def weights(embed):
            return embed.linear.weight.detach().double(), embed.linear.bias.detach().double()

        contrast_idx = torch.cat((idx[:, None], self.contrast.sampler.draw(idx)), 1)
        if not self.compared:
            banks = self.contrast.memory_v1.rows.double(), self.contrast.memory_v2.rows.double()
            self.published = PublishedCRD(weights(self.embed_s), weights(self.embed_t), *banks, 0.07, 0.5)
        self.published.w_s, self.published.w_t = weights(self.embed_s), weights(self.embed_t)
        expected = self.published.step(f_s.detach().double(), f_t.double(), idx, contrast_idx)
        loss = super().forward(f_s, f_t, idx)
        self.compared.append((loss.item(), expected.item()))
        return loss


def test_replaced_loss_equals_repdistiller_along_the_run(monkeypatch, capsys):
    """Not its accuracy, which no release of PyTorch promises: banks, Z and loss of every step, and that it trains."""
    spec = importlib.util.spec_from_file_location("replace_crd_loss", EXAMPLES / "replace_crd_loss.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(Compared, "compared", [])
    monkeypatch.setattr(example, "CRDLoss", Compared)
    monkeypatch.setattr(sys, "argv", ["replace_crd_loss.py", *SMALL["replace_crd_loss.py"]])
    example.main()
    ours, published = map(torch.tensor, zip(*Compared.compared, strict=True))
    assert len(ours) == 4 * 7 and bool(ours.isfinite().all())  # 200 images in batches of 32
    torch.testing.assert_close(ours, published, rtol=2e-4, atol=0)
    losses = [float(x) for x in re.findall(r"cross entropy ([\d.]+), CRD [1-9]", capsys.readouterr().out)]
    assert len(losses) == 4 and losses[-1] < 0.8 * losses[0], losses


def test_the_replaced_loss_runs_as_printed(output_of):
    out = output_of("replace_crd_loss.py")
    assert [line.split(":")[0] for line in out.splitlines() if "%" in line] == ["teacher", "plain student", "student"]


def test_a_step_of_repdistiller_runs_with_one_import_changed(output_of):
    values = re.findall(r"step \d: loss (\S+), CRD (\S+)", output_of("repdistiller_step.py"))
    assert len(values) == 3 and all(math.isfinite(float(x)) for pair in values for x in pair)


def test_fit_example_trains_and_resumes(tmp_path, output_of):
    def rows(out):
        return [line.split() for line in out.splitlines() if re.match(r" +\d", line)]

    where = ["--output-dir", str(tmp_path)]
    table = rows(output_of("fit.py", *where))
    assert [row[0] for row in table] == ["1", "2"] and float(table[-1][3]) < float(table[0][3])
    assert (tmp_path / "student" / "checkpoint.pt").is_file()
    out = output_of("fit.py", *where)
    assert rows(out) == table and out.count("finished earlier") == 2


def test_points_move_to_their_targets(output_of):
    out = output_of("ot_between_batches.py")
    first, *_, last = (float(x) for x in re.findall(r"divergence (\S+)", out))
    assert last < first / 100, out
    assert "plan (256, 256) of mass 1.000000" in out


def test_many_rows(output_of):
    out = output_of("ten_million_rows.py")
    losses = [float(x) for x in re.findall(r"step \d: loss (\S+),", out)]
    assert "plan=gather" in out and len(losses) == 2 and all(map(math.isfinite, losses)), out


@pytest.mark.parametrize("views", ["halves", pytest.param("colour", marks=pytest.mark.slow)])
def test_two_towers_retrieve_their_pairs_on_one_and_two_processes(output_of, views, tmp_path):
    more: tuple[str, ...] = ()
    if views == "colour":
        more = ("--views", "colour", "--data", "cifar100", "--data-dir", str(some_of_cifar100(tmp_path)))
        more = (*more, "--batch-size", "128", "--epochs", "10")
        two = {"launcher": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")}
    else:
        two = {"processes": 2}
    single, together = output_of("two_tower.py", *more), output_of("two_tower.py", *more, **two)
    (losses, fractions), others = (
        ([float(x) for x in re.findall(rf"{name}:? ([\d.]+)", out)] for name in ("last batch", "images"))
        for out in (single, together)
    )
    assert len(losses) in (4, 10) and losses[-1] < 0.9 * losses[0], single
    assert fractions[0] > (2.0 if views == "halves" else 0.8), single  # by chance 0.3 and 0.2
    their_losses, their_shares = others
    assert their_losses == pytest.approx(losses, rel=1e-3)
    assert their_shares == pytest.approx(fractions, abs=1.0)


def test_lightning_trains_the_example(output_of):
    require_importable("lightning")
    out = output_of("lightning_module.py")
    means = dict(re.findall(r"'(\w+)': (-?[\d.]+)", out))
    assert {"loss", "gckt", "lckt"} <= set(means) and "accuracy" in out, out


def test_the_trainer_trains_the_example(output_of):
    require_importable("transformers", "accelerate")
    assert re.search(r"^accuracy [01]\.\d+$", output_of("hf_trainer.py"), re.M)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_fsdp_trains_the_example(processes, output_of):
    pytest.importorskip("accelerate")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2") if processes == 2 else ()
    out = output_of("accelerate_fsdp.py", launcher=launcher)
    losses = [float(x) for x in re.findall(r"epoch \d: loss (\S+)", out)]
    assert len(losses) == 2 and all(map(math.isfinite, losses)), out


def test_networks_of_timm_are_trained(output_of):
    try:
        torchvision_models("timm")  # which imports it
    except ImportError as error:
        pytest.skip(str(error))
    pytest.importorskip("timm")
    rows = [line.split() for line in output_of("library_networks.py").splitlines() if re.match(r" +\d+ ", line)]
    assert len(rows) == 2 and all(math.isfinite(float(row[2])) for row in rows), rows


def test_a_method_of_ones_own_is_trained(output_of):
    out = output_of("own_method.py")
    assert [line.split()[4] for line in out.splitlines() if line.startswith("epoch")] == ["correlation"] * 2, out


def test_unlabelled_pixels_are_masked(output_of):
    shares = [float(x) for x in re.findall(r": ([\d.]+) %", output_of("segmentation.py"))]
    assert len(shares) == 3 and min(shares) > 20, shares  # of three classes the background alone has a third
