"""A command on one process or on several: its process group, its exit code, and an error as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from ..distributed import ranks
from ..train.checkpoint import CheckpointError
from ..train.meters import NonFiniteLoss
from ..train.ranks import LOST, peer_lost, process_group, speaks_first, tell_launcher
from .usage import UsageError

ON_SEVERAL = ("distill", "teacher")  # what several processes do together
NO_DEFECT = (CheckpointError, NonFiniteLoss, MemoryError, NotImplementedError, OSError, ValueError)


def run_job(name: str, command: Callable[[list[str]], None], options: list[str]) -> int:
    """`command(options)` in the process group that torchrun asks for; the exit code, see `main.main`.

    Raises:
        BrokenPipeError: the output was closed.
        Exception: a defect of this package, or of a user's code.
    """
    try:
        with process_group():
            if ranks().world > 1 and name not in ON_SEVERAL:
                several = " and ".join(ON_SEVERAL)
                raise UsageError(f"expected one process, got {ranks().world}; {several} run on several")
            command(options)
            sys.stdout.flush()
        return 0
    except UsageError as error:
        _complain(name, error)
        return 2
    except BrokenPipeError:
        raise
    except Exception as error:
        if not (isinstance(error, NO_DEFECT) or peer_lost(error) or _of_the_machine(error)):
            if not speaks_first():  # one process shows where
                return 1
            tell_launcher(f"{type(error).__name__}: {error}")
            raise
        _complain(name, error)
        return 1
    except KeyboardInterrupt:
        _complain(name, "interrupted; the same command goes on after the last epoch")
        return 130


def _complain(name: str, error: Exception | str) -> None:
    """Print a message once, even if many processes have it."""
    message = f"wcord-fast {name}: {_sentence(error)}"
    if speaks_first():
        print(message, file=sys.stderr, flush=True)
        if isinstance(error, str) or not peer_lost(error):  # else the launcher knows better who was the first to go
            tell_launcher(message)


def _of_the_machine(error: Exception) -> bool:
    """Whether the error is about the machine: lack of memory, or a named backend that cannot run."""
    text = str(error)
    return isinstance(error, RuntimeError) and (
        isinstance(error, torch.OutOfMemoryError) or text.startswith("backend=") or "can't allocate memory" in text
    )


def _sentence(error: Exception | str) -> str:
    text = str(error) or "out of memory"
    if isinstance(error, Exception) and peer_lost(error):
        return LOST
    return text.splitlines()[0] if isinstance(error, Exception) and _of_the_machine(error) else text
