"""Processes of one gloo group that are started once and then run many checks: `Pool(world).run(function, *args)`."""

from __future__ import annotations

import datetime
import os
import tempfile
import traceback
from multiprocessing import get_context
from pathlib import Path

import torch

PATIENCE = 120  # seconds


class Pool:
    """`world` processes with torch.distributed initialised, one thread each."""

    def __init__(self, world: int):
        self.world = world
        self._folder = tempfile.TemporaryDirectory()
        context = get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, self._folder.name, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function, *args) -> list:
        """function(*args) on every rank; the results in rank order, or AssertionError with the first traceback."""
        for pipe in self._pipes:
            pipe.send((function, args))
        results = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(PATIENCE), f"rank {rank} does not answer"
            results.append(pipe.recv())
        failed = [text for ok, text in results if not ok]
        assert not failed, failed[0]
        return [value for _, value in results]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


def _serve(rank: int, world: int, folder: str, pipe) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group(
        "gloo",
        init_method=(Path(folder) / "store").as_uri(),
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=PATIENCE),
    )
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*args)))
        except Exception:
            pipe.send((False, f"rank {rank}: {traceback.format_exc()}"))
