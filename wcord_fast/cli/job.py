"""A command on one process or on several: its process group, its exit code, and an error as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from ..distributed import ranks
from ..train.checkpoint import CheckpointError
from ..train.meters import NonFiniteLoss
from ..train.ranks import LOST, is_first_to_report, peer_lost, process_group, report_to_launcher
from .usage import UsageError

TRAIN = ("distill", "teacher", "table", "sweep", "crossmodal")  # commands that keep finished epochs
ON_SEVERAL = ("distill", "teacher")  # commands that may run on several processes
EXPECTED_ERRORS = (CheckpointError, NonFiniteLoss, MemoryError, NotImplementedError, OSError, ValueError)  # no defects


def run_job(name: str, command: Callable[[list[str]], None], options: list[str]) -> int:
    """Run `command(options)` in torchrun's process group; return the exit code, see `main.main`.

    Raises:
        BrokenPipeError: the reader of the output closed it.
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
        _print_error(name, error)
        return 2
    except BrokenPipeError:
        raise
    except Exception as error:
        if not (isinstance(error, EXPECTED_ERRORS) or peer_lost(error) or _is_machine_error(error)):
            if not is_first_to_report():  # one process prints the traceback
                return 1
            report_to_launcher(f"{type(error).__name__}: {error}")
            raise
        _print_error(name, error)
        return 1
    except KeyboardInterrupt:
        again = "the same command without --restart" if "--restart" in options else "the same command"
        _print_error(name, f"interrupted; {again} goes on after the last epoch" if name in TRAIN else "interrupted")
        return 130


def _print_error(name: str, error: Exception | str) -> None:
    """Print a message once, even if many processes have it."""
    message = f"wcord-fast {name}: {_message(error)}"
    if is_first_to_report(error):
        print(message, file=sys.stderr, flush=True)
        if isinstance(error, str) or not peer_lost(error):  # else the launcher names the process that failed first
            report_to_launcher(message)


def _is_machine_error(error: Exception) -> bool:
    """Whether the machine causes the error: memory is short, or the requested backend cannot run."""
    text = str(error)
    return isinstance(error, RuntimeError) and (
        isinstance(error, torch.OutOfMemoryError) or text.startswith("backend=") or "can't allocate memory" in text
    )


def _message(error: Exception | str) -> str:
    text = str(error) or "out of memory"
    if isinstance(error, Exception) and peer_lost(error):
        return LOST
    return text.splitlines()[0] if isinstance(error, Exception) and _is_machine_error(error) else text
