"""`wcord-fast` with an accident: FAULT = "WHERE:WHICH" kills a rank ("1"), or "all", at the first such point of epoch 2.

WHERE is "step" (in the second training step), "banks" (a shard half written) or "checkpoint" (checkpoint.pt half written).
A run that goes on from a checkpoint of epoch 2 or later has no accident.
"""

from __future__ import annotations

import os
import signal
import sys

import torch.distributed as dist

from wcord_fast.train import checkpoint, loop, shards
from wcord_fast.train.cli import main

where, _, which = os.environ["FAULT"].partition(":")
steps = 0


def here() -> None:
    if which in ("all", os.environ.get("RANK", "0")):
        os.kill(os.getpid(), signal.SIGKILL)


def train_step(run, *args, **kwargs):
    global steps
    steps += len(run.history) == 1 and run.name == "wcord"
    if where == "step" and steps == 2:
        here()
    return original_step(run, *args, **kwargs)


def write(folder, banks):
    if where == "banks" and folder.name.endswith("000002"):
        folder.mkdir(exist_ok=True)
        (folder / f"__{dist.get_rank()}_0.distcp").write_bytes(b"half")
        here()
    return original_write(folder, banks)


def save(state, file):
    if where == "checkpoint" and isinstance(state, dict) and state.get("epoch") == 2 and "banks" in state:
        file.write(b"half")
        here()
    return original_save(state, file)


original_step, loop.train_step = loop.train_step, train_step
original_write, shards._write = shards._write, write
original_save, checkpoint.torch.save = checkpoint.torch.save, save

if __name__ == "__main__":
    sys.exit(main())
