"""A script of RepDistiller's with one import changed, beside an independent float64 module with its interface."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.crd_oracle import estimate_z, nce_per_anchor, updated_bank
from tests.test_examples import EXAMPLES
from wcord_fast import repdistiller

OPT = SimpleNamespace(s_dim=6, t_dim=9, feat_dim=8, n_data=40, nce_k=7, nce_t=0.1, nce_m=0.4)


class Embedding(nn.Module):
    def __init__(self, width, feat_dim):
        super().__init__()
        self.linear = nn.Linear(width, feat_dim)

    def forward(self, f):
        z = nn.functional.linear(f.double(), self.linear.weight.double(), self.linear.bias.double())
        return z / z.norm(dim=1, keepdim=True)


class NaiveCRD(nn.Module):
    """The published formula, called and saved as RepDistiller's loss is."""

    def __init__(self, opt):
        super().__init__()
        self.embed_s, self.embed_t = Embedding(opt.s_dim, opt.feat_dim), Embedding(opt.t_dim, opt.feat_dim)
        self.contrast = nn.Module()
        self.contrast.register_buffer("params", torch.tensor([opt.nce_k, opt.nce_t, -1, -1, opt.nce_m]))
        for name in ("memory_v1", "memory_v2"):
            self.contrast.register_buffer(name, torch.zeros(opt.n_data, opt.feat_dim))
        self.opt, self.z = opt, {}

    def forward(self, f_s, f_t, idx, contrast_idx):
        anchors = {"memory_v2": self.embed_s(f_s), "memory_v1": self.embed_t(f_t)}  # by the bank that each is scored in
        n, temperature = self.opt.n_data, self.opt.nce_t
        total = torch.zeros(1)
        for name, anchor in anchors.items():
            bank = getattr(self.contrast, name).double()
            if name not in self.z:
                self.z[name] = estimate_z(anchor.detach(), bank, contrast_idx, temperature, n)
            total = total + nce_per_anchor(anchor, bank, contrast_idx, self.z[name], temperature, n).mean()
        for name, other in (("memory_v1", "memory_v2"), ("memory_v2", "memory_v1")):
            bank = getattr(self.contrast, name)
            bank.copy_(updated_bank(bank.double(), idx, anchors[other].detach(), self.opt.nce_m))
        return total


def test_losses_gradients_and_banks_are_equal():
    torch.manual_seed(0)
    ours, naive = repdistiller.CRDLoss(OPT), NaiveCRD(OPT)
    naive.load_state_dict(ours.repdistiller_state_dict())
    for _ in range(3):
        f_s, f_t = torch.randn(5, OPT.s_dim, requires_grad=True), torch.randn(5, OPT.t_dim)
        index = torch.randperm(OPT.n_data)[:5]
        contrast_idx = torch.cat((index[:, None], torch.randint(OPT.n_data, (5, OPT.nce_k))), 1)
        results = []
        for criterion_kd in (ours, naive):
            criterion_kd.zero_grad()
            f_s.grad = None
            loss = criterion_kd(f_s, f_t, index, contrast_idx)
            loss.backward()
            gradients = [part.linear.weight.grad for part in (criterion_kd.embed_s, criterion_kd.embed_t)]
            results.append([loss.detach().squeeze(), f_s.grad, *gradients])
        torch.testing.assert_close(*results, check_dtype=False, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for part in (ours, naive):
                for p in part.parameters():
                    p.add_(p.sin(), alpha=0.1)  # an equal step of both
    state = ours.repdistiller_state_dict()
    for name in ("memory_v1", "memory_v2"):
        torch.testing.assert_close(state[f"contrast.{name}"], getattr(naive.contrast, name), rtol=0, atol=1e-5)


def test_the_door_takes_the_object_that_repdistiller_makes():
    assert repdistiller.CRDLoss(OPT, labels=torch.arange(40) % 4).contrast.sampler.exclude == "class"
    with pytest.raises(ValueError, match="missing nce_k"):
        repdistiller.CRDLoss(SimpleNamespace(**{k: v for k, v in vars(OPT).items() if k != "nce_k"}))


def test_the_example_shows_both_losses(tmp_path, monkeypatch, capsys):
    (tmp_path / "crd").mkdir()
    (tmp_path / "crd" / "criterion.py").write_text(f"from {__name__} import NaiveCRD as CRDLoss\n")
    spec = importlib.util.spec_from_file_location("repdistiller_step", EXAMPLES / "repdistiller_step.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(sys, "argv", ["repdistiller_step.py", "--steps", "4", "--original", str(tmp_path)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("crd", "crd.criterion"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    example.main()
    rows = re.findall(r"step \d: loss (\S+), CRD (\S+), RepDistiller's (\S+)", capsys.readouterr().out)
    losses, ours, original = ([float(row[i]) for row in rows] for i in range(3))
    assert len(rows) == 4 and ours == pytest.approx(original, rel=1e-4)
    assert losses[0] == pytest.approx(0.8 * ours[0] + 2.3, abs=0.5)  # ten classes, an untrained student
    for name in ("crd", "crd.criterion"):
        sys.modules.pop(name, None)
