"""Transport and whole steps where the world around them is unusual: forks, loaders, threads, deterministic mode."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from wcord_fast import CRDLoss, WCoRDLoss
from wcord_fast import functional as F
from wcord_fast.ops import native_module

needs_native = pytest.mark.skipif(native_module.load() is None, reason="no native module")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")

FORK = """
import os, signal, torch
from wcord_fast import functional as F

torch.set_num_threads(2)
g = torch.Generator().manual_seed(0)
x, y = torch.randn(300, 16, generator=g), torch.randn(300, 16, generator=g)
solve = lambda: F.ot_solve(x, y, backend="native")
expected = solve()
torch.ones(1000, 1000).exp()
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(0 if all(torch.equal(a, b) for a, b in zip(solve(), expected)) else 1)
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
def test_a_forked_process_solves(tmp_path):
    run(FORK, tmp_path)


@needs_native
@needs_fork
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_loader_s_workers_call_us(tmp_path, context):
    run(LOADER, tmp_path, context)


@needs_native
def test_python_threads_solve_what_one_solves(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 70, 16, generator=g), torch.randn(3, 300, 16, generator=g)

    def solve(solver: str) -> tuple[torch.Tensor, ...]:
        h = x.clone().requires_grad_()
        found = F.ot_solve(h, y, solver=solver, backend="native")
        return *(t.detach() for t in found), *torch.autograd.grad(found.cost.sum(), h)

    solvers = ("ipot", "sinkhorn") * 40
    monkeypatch.setattr(native_module, "threads", lambda: 2)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(solve, solvers))
    for solver, result in zip(solvers, results, strict=True):
        expected = results[solvers.index(solver)]
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("threads", [1, 2])
def test_steps_run_and_repeat_in_deterministic_mode(backend, threads):
    """No operation that torch calls nondeterministic, and the same bits in every run."""

    def train() -> list[torch.Tensor]:
        torch.manual_seed(0)
        found = []
        for module in (
            CRDLoss(6, 9, 60, feat_dim=8, nce_k=20, labels=torch.arange(60) % 4, backend=backend),
            WCoRDLoss(6, 9, 60, feat_dim=8, num_negatives="all", backend=backend, ot_solver="sinkhorn", ot_eps=0.1),
            WCoRDLoss(6, 9, 60, feat_dim=8, num_negatives="all", critic="dual", negatives="bank", backend=backend),
        ):
            for step in range(3):
                index = torch.tensor([3, 3, 0, 59, step])  # one of them twice
                loss = module(torch.randn(5, 6), torch.randn(5, 9), index)
                loss.backward()
                found.append(loss.detach())
            found += [p.grad for p in module.parameters() if p.grad is not None]
            found += [t.clone() for t in module.state_dict().values()]
        return found

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = train(), train()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)
    assert all(torch.equal(a.nan_to_num(-7), b.nan_to_num(-7)) for a, b in zip(first, second, strict=True))
