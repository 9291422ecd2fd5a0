"""`wcord-fast` with an accident, "WHERE:WHICH": a rank ("1"), or "all", is killed at the first such point of epoch 2.

WHERE is "step" (in the second training step), "banks" (a shard half written) or "checkpoint" (checkpoint.pt half
written). Without one it is `wcord-fast`. As a program, started by torchrun, it has "step:1" until it is restarted.
"""

from __future__ import annotations

import os
import signal
import sys

from wcord_fast.train import checkpoint, loop, shards
from wcord_fast.train.cli import main


def run(fault: str, argv: list[str]) -> int:
    if fault:
        arrange(*fault.split(":"))
    return main(argv)


def arrange(where: str, which: str) -> None:
    """Set the accident up in this process."""
    steps = 0
    original_step, original_write, original_save = loop.train_step, shards._write, checkpoint.torch.save

    def here() -> None:
        if which in ("all", os.environ["RANK"]):
            os.kill(os.getpid(), signal.SIGKILL)

    def train_step(run, *args, **kwargs):
        nonlocal steps
        steps += len(run.history) == 1
        if where == "step" and steps == 2:
            here()
        return original_step(run, *args, **kwargs)

    def write(folder, banks):
        if where == "banks" and folder.name.endswith("000002"):
            folder.mkdir(exist_ok=True)
            (folder / f"__{os.environ['RANK']}_0.distcp").write_bytes(b"half")
            here()
        return original_write(folder, banks)

    def save(state, file):
        if where == "checkpoint" and isinstance(state, dict) and state.get("epoch") == 2:
            file.write(b"half")
            here()
        return original_save(state, file)

    loop.train_step, shards._write, checkpoint.torch.save = train_step, write, save


if __name__ == "__main__":
    sys.exit(run("step:1" if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else "", sys.argv[1:]))
