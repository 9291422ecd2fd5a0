"""An installed wheel, where there is no compiler: the native module loads, computes, and shares PyTorch's OpenMP."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

import wcord_fast
from wcord_fast import CRDLoss, functional
from wcord_fast.ops import native_module


def step(backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and gradient of one CRD step, and a transport cost, with fixed seeds."""
    torch.manual_seed(0)
    loss_fn = CRDLoss(32, 64, 1000, nce_k=100, seed=0)
    student, teacher = torch.randn(16, 32, requires_grad=True), torch.randn(16, 64)
    with wcord_fast.use_backend(backend):
        loss = loss_fn(student, teacher, torch.arange(16)) + functional.ot_cost(student, teacher[:, :32])
        loss.backward()
    assert student.grad is not None
    return loss.detach(), student.grad


compilers = [name for name in ("cc", "c++", "gcc", "g++", "clang++", "nvcc") if shutil.which(name)]
assert not compilers, f"expected a PATH without compilers, found {compilers}"
assert native_module.module() is not None
for native, reference in zip(step("native"), step("reference"), strict=True):
    torch.testing.assert_close(native, reference, rtol=1e-4, atol=1e-6)
libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
assert len(libraries) == 1, f"expected one OpenMP runtime, found {libraries}"
print(wcord_fast.info())
print("smoke test passed:", wcord_fast.__file__, *libraries)
