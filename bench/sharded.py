"""`python -m bench sharded`: a training step on a sharded bank by 1 .. W processes of this machine (gloo).

A step joins the anchors, scores both directions with gradients, updates the banks and advances the sampler. For each
number of processes a line shows: the rows of a bank in each process; the milliseconds of a step; its processor time in
the process that takes most, which a busy machine changes little; the bytes that rank 0 sends, measured and by formula;
the peak memory of a process; and whether losses and gradient equal those of the first number. The published row:

    python -m bench sharded --rows 10000000 --negatives 65536 --batch 64 --dtype bf16 --processes 1,2 --steps 5
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from wcord_fast.distributed import bytes_sent
from wcord_fast.distributed.ranks import Ranks, gather_rows, part_rows, sizes_of
from wcord_fast.nn import Contrast
from wcord_fast.nn.options import ContrastOptions

from . import results_file

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DIM = 128
LIMIT = 2e-5  # fp32: of the loss, and of the gradient's largest element


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench sharded", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000, help="N")
    parser.add_argument("--negatives", type=int, default=4096, help="K")
    parser.add_argument("--batch", type=int, default=64, help="B of all processes")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--plan", choices=("auto", "gather", "dense"), default="auto")
    parser.add_argument("--processes", default="1,2,3", help="numbers of processes, one thread each")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a directory in place of bench/results")
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    first: tuple | None = None
    print("processes  rows each  MB each  step ms  CPU ms  bytes sent  arithmetic  peak RSS MB  equal")
    for world in map(int, args.processes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_process, (world, args, folder), nprocs=world)
            parts = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
        losses, grad = parts[0].pop("losses"), parts[0].pop("grad")
        first = first or (losses, grad)
        error = max(_error(losses, first[0]), _error(grad, first[1]))
        row = {
            "bench": "sharded",
            **{k: getattr(args, k) for k in ("rows", "negatives", "batch", "dtype", "plan")},
            "dim": DIM,
            "processes": world,
            "cores": len(os.sched_getaffinity(0)),
            **parts[0],
            **{k: max(p[k] for p in parts) for k in ("peak_rss_mb", "cpu_ms")},
            "error": error,
            "equal": error <= LIMIT,
        }
        rows.append(row)
        equal = f"{row['equal']} ({error:.1e})"
        print(
            f"{world:9}  {row['rows_each']:9,}  {row['mb_each']:7.0f}  {row['step_ms']:7.0f}  {row['cpu_ms']:6.0f}  "
            f"{row['bytes_sent']:10,}  {row['bytes_arithmetic']:10,}  {row['peak_rss_mb']:11.0f}  {equal}"
        )
    print(f"appended to {results_file.append('sharded', rows, args.out)}")
    return 0 if all(row["equal"] and row["bytes_sent"] == row["bytes_arithmetic"] for row in rows) else 1


def arithmetic(batch: int, world: int) -> int:
    """Bytes that rank 0 sends in a step with log Z set: sizes, anchors and their rows, then losses and gradients."""
    each = [len(part_rows(batch, Ranks(r, world))) for r in range(world)]
    gathered = (world - 1) * (8 + max(each) * (2 * DIM * 4 + 8))
    return gathered + (batch - each[0]) * 2 * (1 + DIM) * 4


def _error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def _process(rank: int, world: int, args: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    options = ContrastOptions(feat_dim=DIM, num_negatives=args.negatives, exclude="self", shard="rank")
    contrast = Contrast(args.rows, options, bank_dtype=DTYPES[args.dtype], plan=args.plan, seed=1).train()
    bank = contrast.memory_v1
    g = torch.Generator().manual_seed(0)
    own = part_rows(args.batch, Ranks(rank, world))
    losses: list[float] = []
    times: list[float] = []
    cpu: list[float] = []
    sent = 0
    for step in range(args.steps + 1):  # the first sets log Z and is not timed
        index = torch.randint(args.rows, (args.batch,), generator=g)[own.start : own.stop]
        everyone = torch.nn.functional.normalize(torch.randn(2, args.batch, DIM, generator=g), dim=2)
        anchors = everyone[:, own.start : own.stop].clone().requires_grad_()
        dist.barrier()
        before, began, worked = bytes_sent(), time.perf_counter(), time.process_time()
        joined = contrast.join(anchors, index)
        loss = contrast.nce(anchors, index, None, joined).mean(1).sum()
        loss.backward()
        contrast.finish_step(anchors, index, joined)
        dist.barrier()
        if step:
            times.append(time.perf_counter() - began)
            cpu.append(time.process_time() - worked)
            sent = bytes_sent() - before
        losses.append(float(loss.detach()) * len(own) / args.batch)
    sizes = sizes_of(len(own), anchors.device)
    (grad,) = gather_rows([anchors.grad.transpose(0, 1) * len(own)], sizes)  # that of the batch's sum
    total = torch.tensor(losses)
    dist.all_reduce(total)
    result = {
        "rows_each": len(bank.rows),
        "mb_each": 2 * bank.rows.nbytes / 1e6,
        "step_ms": 1000 * statistics.median(times),
        "cpu_ms": 1000 * statistics.median(cpu),
        "bytes_sent": sent,
        "bytes_arithmetic": arithmetic(args.batch, world),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "losses": total,
        "grad": grad,
    }
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
