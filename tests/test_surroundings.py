"""Ops and whole steps where the world around them is unusual: forks, loaders, threads, deterministic mode."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from wcord_fast import CRDLoss, NegativeSampler, WCoRDLoss, use_backend
from wcord_fast import functional as F
from wcord_fast.ops import native_module

from .grid import slow

needs_native = pytest.mark.skipif(native_module.load() is None, reason="no native module")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")

FORK = """
import os, signal, sys, torch
from wcord_fast import NegativeSampler, functional as F
from wcord_fast.ops import native_module

torch.set_num_threads(2)
g = torch.Generator().manual_seed(0)
x, bank, index = torch.randn(300, 16, generator=g), torch.randn(400, 16, generator=g), torch.arange(300)
sampler = NegativeSampler(400, 100, seed=0)

def bank_step():
    loss = F.bank_nce(x, bank, index, negatives=sampler, log_z=2.0, backend="native")
    return loss, F.bank_update_(bank.clone(), index, x), sampler.draw(index)

def ot_step():
    return F.ot_solve(x, bank, backend="native")

step = {"bank": bank_step, "ot": ot_step}[sys.argv[1]]
expected = step()
torch.ones(1000, 1000).exp()
child = os.fork()
if child == 0:
    signal.alarm(20)
    same = all(torch.equal(a, b) for a, b in zip(step(), expected))
    torch.set_num_threads(2)  # not ours
    os._exit(0 if same and native_module.threads() == 1 else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

LOADER = """
import signal, sys, torch
from torch.utils.data import DataLoader, Dataset
from wcord_fast import NegativeSampler, functional as F

class Scores(Dataset):  # calls us in the loader's workers
    bank = torch.nn.functional.normalize(torch.randn(500, 16, generator=torch.Generator().manual_seed(0)), dim=1)

    def __len__(self):
        return 12

    def __getitem__(self, i):
        x, index, sampler = self.bank[i : i + 40], torch.arange(40), NegativeSampler(500, 64, seed=i)
        score = F.bank_nce(x, self.bank, index, negatives=sampler, log_z=2.0, backend="native")
        return F.ot_cost(x, self.bank[:50], backend="native"), score

if __name__ == "__main__":
    signal.alarm(100)
    torch.set_num_threads(2)
    data = Scores()
    alone, found = [data[i] for i in range(12)], []
    for costs, scores in DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=sys.argv[1]):
        F.ot_cost(data.bank, data.bank, iters=3, backend="native")  # meanwhile, here too
        found += zip(costs, scores)
    assert len(found) == 12
    assert all(torch.equal(a, b) for one, other in zip(alone, found) for a, b in zip(one, other))
"""


def run(script: str, folder, *words: str) -> None:
    file = folder / "script.py"
    file.write_text(script)
    env = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.pathsep.join(["", os.getcwd()]).strip(":")}
    command = [sys.executable, "-W", "ignore", str(file), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


@needs_native
@needs_fork
@pytest.mark.parametrize("op", ["bank", slow("ot")])
def test_forked_process_does_not_wait_for_missing_threads(tmp_path, op):
    run(FORK, tmp_path, op)


@pytest.mark.slow
@needs_native
@needs_fork
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers_can_call_the_ops(tmp_path, context):
    run(LOADER, tmp_path, context)


def transport(solver: str) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 70, 16, generator=g).requires_grad_(), torch.randn(3, 300, 16, generator=g)
    actual = F.ot_solve(x, y, solver=solver, backend="native")
    return *(t.detach() for t in actual), *torch.autograd.grad(actual.cost.sum(), x)


def scores(plan: str) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x, bank, index = torch.randn(16, 16, generator=g), torch.randn(400, 16, generator=g), torch.arange(16)
    y, sampler = x.clone().requires_grad_(), NegativeSampler(400, 100, seed=0)
    loss = F.bank_nce(y, bank, index, negatives=sampler, log_z=2.0, plan=plan, backend="native")
    return loss.detach(), *torch.autograd.grad(loss.sum(), y), F.bank_update_(bank, index, x)


@needs_native
@pytest.mark.parametrize(("step", "choices"), [(transport, ("ipot", "sinkhorn")), (scores, ("gather", "dense"))])
def test_python_threads_get_equal_results(step, choices, monkeypatch):
    monkeypatch.setattr(native_module, "threads", lambda: 2)
    expected = {choice: step(choice) for choice in choices}
    calls = choices * 50
    with ThreadPoolExecutor(3) as pool:
        for choice, result in zip(calls, pool.map(step, calls), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(result, expected[choice], strict=True))


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("threads", [1, 2])
def test_steps_run_and_repeat_in_deterministic_mode(backend, threads):
    """No operation is nondeterministic by torch's list, and runs are bit-identical."""

    def train() -> list[torch.Tensor]:
        torch.manual_seed(0)
        tensors = []
        for module in (
            CRDLoss(6, 9, 60, feat_dim=8, nce_k=20, labels=torch.arange(60) % 4, backend=backend),
            WCoRDLoss(6, 9, 60, feat_dim=8, num_negatives="all", backend=backend, ot_solver="sinkhorn", ot_eps=0.1),
            WCoRDLoss(6, 9, 60, feat_dim=8, num_negatives="all", critic="dual", negatives="bank", backend=backend),
        ):
            for step in range(3):
                index = torch.tensor([3, 3, 0, 59, step])  # one of them twice
                loss = module(torch.randn(5, 6), torch.randn(5, 9), index)
                loss.backward()
                tensors.append(loss.detach())
            tensors += [p.grad for p in module.parameters() if p.grad is not None]
            tensors += [t.clone() for t in module.state_dict().values()]
        return tensors

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        with use_backend(backend):  # of the update too, which has no option
            first, second = train(), train()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)
    assert [len(t) for t in first if t.isnan().any()] == [2]  # log Z of "dual"; unwritten memory is NaN in this mode
    assert all(torch.equal(a.nan_to_num(-7), b.nan_to_num(-7)) for a, b in zip(first, second, strict=True))
