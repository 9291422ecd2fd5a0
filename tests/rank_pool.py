"""Processes of one gloo group: `Pool` starts them once for many checks, `launch` runs one program to its end, or death.

`alone` runs a program in one process that belongs to no group.

They are forked from a server that has imported everything once (forkserver): imports would take longer than the checks.
"""

from __future__ import annotations

import datetime
import faulthandler
import gc
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

PATIENCE = 120  # seconds
LONGEST = 300  # of a program that runs to its end
PRELOAD = ("wcord_fast.cli.main", "torch.distributed.tensor", "torch.distributed.checkpoint", "torch._dynamo")


def context():
    """The multiprocessing context whose processes are forked from the server."""
    result = get_context("forkserver")
    result.set_forkserver_preload([*PRELOAD, "sklearn.datasets", "matplotlib.pyplot", "tests.faulty_rank"])
    return result


class Ended(NamedTuple):
    """Exit codes and output of a program's processes, in rank order."""

    codes: list[int]
    out: list[str]
    err: list[str]


def launch(world: int, folder: Path, function, *args, agent: bool = True) -> Ended:
    """`sys.exit(function(*args))` on `world` processes in the environment that torchrun gives; output in `folder`.

    As torchrun's agent does, this process serves the store of the group, and so outlives every rank; without `agent`
    rank 0 serves it, as under other launchers.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    if agent:
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        environment |= {"TORCHELASTIC_RUN_ID": "test"}
    else:
        del store  # its port is free
    each = [environment | _environment(rank, world) for rank in range(world)]
    return _ended(each, folder, function, args)


def alone(folder: Path, function, *args) -> subprocess.CompletedProcess[str]:
    """`sys.exit(function(*args))` in one process; output in `folder`."""
    (code,), (out,), (err,) = _ended([{}], folder, function, args)
    return subprocess.CompletedProcess(args, code, out, err)


def run_script(command: list[str]) -> None:
    """`python *command`, for `alone`."""
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


def run_code(code: str, *words: str) -> None:
    """`python -c code *words`, for `alone`."""
    sys.argv = ["-c", *words]
    exec(code, {"__name__": "__main__"})


def _ended(environments: list[dict[str, str]], folder: Path, function, args: tuple) -> Ended:
    """The program once in each environment, all at a time; output in `folder`, in files numbered like environments."""
    processes = [
        context().Process(target=_program, args=(number, environment, folder, function, args))
        for number, environment in enumerate(environments)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    texts = [[(folder / f"{name}{n}").read_text() for n in range(len(processes))] for name in ("out", "err")]
    return Ended([p.exitcode for p in processes], *texts)


def _program(number: int, environment: dict[str, str], folder: Path, function, args) -> None:
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        stream.flush()
        os.dup2(os.open(folder / f"{name}{number}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream.fileno())
    faulthandler.dump_traceback_later(LONGEST, exit=True)  # so a program that hangs fails, and says where
    torch.set_num_threads(1)
    os.environ |= environment
    destroy = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda *which: (_require_no_ddp(), destroy(*which))
    sys.exit(function(*args))


def _require_no_ddp() -> None:
    """A DDP wrapper that outlives its gloo group may hang: it joins threads with the GIL held that they wait for."""
    alive = sum(type(x) is DistributedDataParallel for x in gc.get_objects())
    assert not alive, f"the process group is destroyed before {alive} DDP wrappers"


def _environment(rank: int, world: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}


class Pool:
    """`world` processes with torch.distributed initialised, one thread each."""

    def __init__(self, world: int):
        self.world = world
        self._folder = tempfile.TemporaryDirectory()
        server = context()
        self._pipes, self._processes = [], []
        for rank in range(world):
            ours, theirs = server.Pipe()
            process = server.Process(target=_serve, args=(rank, world, self._folder.name, theirs), daemon=True)
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
    os.environ |= _environment(rank, world)
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
