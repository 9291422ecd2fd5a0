"""The command `wcord-fast`."""

from __future__ import annotations

import difflib
import io
import logging
import os
import sys
import textwrap
import time
from collections.abc import Callable

import torch
import yaml

from ..distributed import ranks
from ..usage import answer
from . import checkpoint, report
from . import table as tables
from .arguments import Arguments
from .checkpoint import CheckpointError
from .completion import completion
from .config import Config
from .evaluate_command import evaluate_checkpoint
from .export import export
from .logs import to_screen
from .meters import NonFiniteLoss
from .parser import UsageError, parse
from .ranks import LOST, is_main, peer_lost, process_group, speaks_first, tell_launcher
from .runs import Workbench

log = logging.getLogger("wcord_fast")


def main(argv: list[str] | None = None) -> int:
    """Run `wcord-fast`; 0 on success, 2 for what was typed wrong, 1 for what went wrong, 130 when interrupted, 141 when
    its output was closed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the screen has no letters for
    arguments = sys.argv[1:] if argv is None else argv
    if answer(arguments):
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"wcord-fast: unknown command {name!r}; expected {', '.join(COMMANDS)}{hint}", file=sys.stderr)
        return 2
    try:
        with process_group():
            if ranks().world > 1 and name not in ON_MANY:
                raise UsageError(f"expected one process, got {ranks().world}; {' and '.join(ON_MANY)} run on several")
            status = COMMANDS[name](rest)
            sys.stdout.flush()
        return status
    except UsageError as error:
        _complain(name, error)
        return 2
    except BrokenPipeError:  # whoever read our output has left (`| head`): finished epochs are kept, nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not _expected(error):  # a defect: one process shows where
            if not speaks_first():
                return 1
            tell_launcher(f"{type(error).__name__}: {error}")
            raise
        _complain(name, error)
        return 1
    except KeyboardInterrupt:
        _complain(name, "interrupted; the same command goes on after the last epoch")
        return 130


def distill(argv: list[str]) -> int:
    """Teacher, then one student per method, then the table and the plot."""
    began = time.perf_counter()
    argv, dry = _dry_run(argv)
    config = parse("distill", argv, "Train students from a teacher and compare them.")
    if dry:
        return _show(config)
    bench = _start(config)
    bench.require_methods()
    teacher = bench.teacher()
    students = [bench.student(method, teacher) for method in config.methods]
    results = [*students, teacher]
    lines = report.lines_of(results)
    said = report.notes(results, len(bench.data.test_labels), config.batch_size)
    said += report.left_out(len(bench.data.skipped))
    if not is_main():
        return 0
    files = report.write(config.directory, results, lines, said)
    print(f"\n{report.text_table(lines)}\n\n{textwrap.fill(said, 100)}\n")
    print(f"{time.perf_counter() - began:.0f} s in all. Written: {', '.join(map(str, files))}")
    print(f"Checkpoints: {', '.join(str(config.directory / r.name / checkpoint.CURRENT) for r in students)}")
    return 0


def teacher(argv: list[str]) -> int:
    """One network, labels only."""
    own = {"--epochs": "--teacher-epochs", "--lr": "--teacher-lr"}  # here they can only mean the teacher's
    argv = ["=".join([own.get(name, name), *value]) for name, *value in (word.split("=", 1) for word in argv)]
    argv, dry = _dry_run(argv)
    config = parse("teacher", argv, "Train the network named by --teacher with labels only.")
    if dry:
        return _show(config)
    if config.teacher_checkpoint is not None:
        raise UsageError("--teacher-checkpoint is for distill; this command trains a teacher")
    bench = _start(config)
    result = bench.teacher()
    print(f"\n{report.text_table(report.lines_of([result]))}\n{report.left_out(len(bench.data.skipped))}")
    print(f"Checkpoint: {config.directory / 'teacher' / checkpoint.CURRENT}")
    return 0


def table(argv: list[str]) -> int:
    """Pairs x methods x seeds beside the paper's numbers."""
    if {"-h", "--help"} & set(argv):
        print(tables.help_text(), end="")
    else:
        print(tables.table(argv))
    return 0


def sweep(argv: list[str]) -> int:
    """Privileged distillation by method and by loss weight."""
    from ..tasks.sweep import sweep as run

    print(run(argv))
    return 0


def crossmodal(argv: list[str]) -> int:
    """Cross-modal transfer, measured by linear probes."""
    from ..tasks.crossmodal import crossmodal as run

    print(run(argv))
    return 0


def info(argv: list[str]) -> int:
    """What this installation is and can do."""
    Arguments("info", info.__doc__).parse_args(argv)
    from .. import info as installation

    print(installation())
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "distill": distill,
    "teacher": teacher,
    "table": table,
    "sweep": sweep,
    "crossmodal": crossmodal,
    "evaluate": evaluate_checkpoint,
    "export": export,
    "info": info,
    "completion": completion,
}
ON_MANY = ("distill", "teacher")  # what several processes do together


def _complain(name: str, error: BaseException | str) -> None:
    """One message on the screen, also where many processes have the same to say."""
    said = f"wcord-fast {name}: {_sentence(error)}"
    if speaks_first():
        print(said, file=sys.stderr, flush=True)
        if isinstance(error, str) or not peer_lost(error):  # else the launcher knows better who was the first to go
            tell_launcher(said)


def _expected(error: Exception) -> bool:
    """Whether `error` is about what was asked, or about the machine: no defect of ours."""
    told = (CheckpointError, NonFiniteLoss, MemoryError, NotImplementedError, OSError, ValueError)
    return isinstance(error, told) or peer_lost(error) or _of_the_machine(error)


def _of_the_machine(error: Exception) -> bool:
    """Whether it says that the machine cannot do what was asked: memory, or a named backend."""
    said = str(error)
    return isinstance(error, RuntimeError) and (
        isinstance(error, torch.OutOfMemoryError) or said.startswith("backend=") or "can't allocate memory" in said
    )


def _sentence(error: BaseException | str) -> str:
    said = str(error) or "out of memory"
    if isinstance(error, Exception) and peer_lost(error):
        return LOST
    return said.splitlines()[0] if isinstance(error, Exception) and _of_the_machine(error) else said


def _dry_run(argv: list[str]) -> tuple[list[str], bool]:
    """The other arguments, and whether --dry-run, or its other name --print-config, is among them."""
    rest = [word for word in argv if word.replace("_", "-") not in ("--dry-run", "--print-config")]
    return rest, len(rest) < len(argv)


def _show(config: Config) -> int:
    print(yaml.safe_dump(config.resolved(), sort_keys=False), end="")
    return 0


def _start(config: Config) -> Workbench:
    to_screen(config.quiet)
    bench = Workbench(config)
    log.info(
        "%s: %d training and %d test images, %d classes; %s; output in %s",
        bench.data.name,
        len(bench.data.train_labels),
        len(bench.data.test_labels),
        bench.data.num_classes,
        f"{bench.device} ({torch.get_num_threads()} threads)" if bench.device.type == "cpu" else bench.device,
        config.directory,
    )
    return bench


if __name__ == "__main__":
    sys.exit(main())
