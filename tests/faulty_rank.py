"""`wcord-fast` with an accident, "WHERE:WHICH": a rank ("1"), or "all", is killed at the first such point of epoch 2.

WHERE is "step" (in the second training step), "banks" (a shard half written), "checkpoint" (checkpoint.pt half
written), "renames" (the earlier checkpoint has its new name, the new one has not) or "test" (in the network's test).
Or no process is killed: "disk" (it is full halfway through checkpoint.pt), "bug" (a defect raises in the second
training step), "nan" (the first step's images hold NaN). Without an accident it is `wcord-fast`. As a program, started
by torchrun, it has the one that the environment variable FAULT names, until it is restarted.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from wcord_fast.cli.main import main
from wcord_fast.train import bank_files, checkpoint, loop


def run(fault: str, argv: list[str]) -> int:
    if fault:
        arrange(*fault.split(":"))
    return main(argv)


def arrange(where: str, which: str) -> None:
    """Set the accident up in this process."""
    steps = 0
    original_step, original_write, original_save = loop.train_step, bank_files._write, checkpoint.torch.save
    original_replace, original_evaluate = os.replace, loop.evaluate

    def me() -> bool:
        return which in ("all", os.environ["RANK"])

    def here() -> None:
        if me():
            os.kill(os.getpid(), signal.SIGKILL)

    def train_step(run, optimizer, batch, *args, **kwargs):
        nonlocal steps
        steps += len(run.history) == 1
        if where == "step" and steps == 2:
            here()
        if where == "bug" and steps == 2 and me():
            raise LookupError("of a user's network")
        if where == "nan" and steps == 1 and me():
            batch.images.fill_(math.nan)
        return original_step(run, optimizer, batch, *args, **kwargs)

    def write(folder, banks):
        if where == "banks" and folder.name.endswith("000002"):
            with suppress(OSError):  # another rank may be removing the folder at this moment
                folder.mkdir(exist_ok=True)
                (folder / f"__{os.environ['RANK']}_0.distcp").write_bytes(b"half")
            here()
        return original_write(folder, banks)

    def save(state, file):
        if where in ("checkpoint", "disk") and isinstance(state, dict) and state.get("epoch") == 2:
            file.write(b"half")
            if where == "disk":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            here()
        return original_save(state, file)

    def replace(source, target):
        original_replace(source, target)
        if where == "renames" and Path(target).name == checkpoint.PREVIOUS:
            here()

    def evaluate(*args):
        if where == "test" and steps:
            here()
        return original_evaluate(*args)

    loop.train_step, bank_files._write, checkpoint.torch.save = train_step, write, save
    os.replace, loop.evaluate = replace, evaluate


if __name__ == "__main__":
    sys.exit(run(os.environ["FAULT"] if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else "", sys.argv[1:]))
