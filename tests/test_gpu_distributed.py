"""Checks that need several GPUs: those of test_distributed_bank on NCCL."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from wcord_fast import CRDLoss
from wcord_fast.distributed.ranks import part_rows, ranks

N, D, BATCH = 500, 32, 24
CASES = [(None, "auto"), ("rank", "gather"), ("rank", "dense")]  # shard, plan: shards by the kernels of both plans

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2, reason=f"NCCL needs two GPUs, torch sees {torch.cuda.device_count()}"
    ),
]


def step(device, shard, plan, part):
    torch.manual_seed(0)
    loss = CRDLoss(7, 9, N, feat_dim=D, nce_k=40, exclude="self", seed=3, shard=shard, plan=plan).to(device)
    g = torch.Generator().manual_seed(1)
    f_s, f_t = torch.randn(BATCH, 7, generator=g)[part], torch.randn(BATCH, 9, generator=g)[part]
    idx = torch.randint(N, (BATCH,), generator=g)[part]
    f_s = f_s.to(device).requires_grad_()
    for _ in range(3):
        value = loss(f_s, f_t.to(device), idx.to(device))
    value.backward()
    return value.item(), f_s.grad.cpu(), loss.contrast.memory_v1.rows.cpu()


def work(rank, world, folder):
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    own = part_rows(BATCH, ranks())
    results = {case: step("cuda", *case, slice(own.start, own.stop)) for case in CASES}
    torch.save(results, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_on_nccl_equal_one_process():
    world = torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (world, folder), nprocs=world)
        parts = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
    value, grad, bank = step("cpu", *CASES[0], slice(None))
    for case in CASES:
        fractions = [len(p[case][1]) / BATCH for p in parts]
        assert sum(w * p[case][0] for w, p in zip(fractions, parts, strict=True)) == pytest.approx(value, rel=1e-5)
        ours = torch.cat([w * p[case][1] for w, p in zip(fractions, parts, strict=True)])
        torch.testing.assert_close(ours, grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()))
    for case in CASES[1:]:
        torch.testing.assert_close(torch.cat([p[case][2] for p in parts]), bank, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(p[CASES[0]][2], parts[0][CASES[0]][2]) for p in parts)
