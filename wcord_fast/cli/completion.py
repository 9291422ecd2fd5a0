"""`wcord-fast completion SHELL`: a script that completes commands, options and names in a shell, made by shtab."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from typing import Annotated, Any

from ..ops import checks
from .crossmodal import CrossModalOptions
from .distill import DistillOptions
from .evaluate import EvaluateOptions
from .export import ExportOptions
from .parser import help_parser, parse
from .sweep import SweepOptions
from .table import TableOptions
from .taps import TapsOptions
from .teacher import TeacherOptions
from .usage import COMMANDS


def shells() -> tuple[str, ...]:
    """The shells for which shtab writes scripts."""
    return ("bash", "zsh", "tcsh")


@dataclass
class CompletionOptions:
    """Print the completion script of a shell: eval "$(wcord-fast completion bash)".

    Attributes:
        shell: bash, zsh or tcsh.
    """

    shell: Annotated[str, shells]

    def __post_init__(self) -> None:
        checks.choice("shell", self.shell, shells())


OPTIONS: dict[str, tuple[type, bool]] = {  # a command's own options, and whether it takes a Config's, too
    "distill": (DistillOptions, True),
    "teacher": (TeacherOptions, True),
    "table": (TableOptions, True),
    "sweep": (SweepOptions, True),
    "crossmodal": (CrossModalOptions, True),
    "evaluate": (EvaluateOptions, False),
    "export": (ExportOptions, False),
    "taps": (TapsOptions, False),
    "completion": (CompletionOptions, False),
}


def run(argv: list[str]) -> None:
    """Print the script."""
    options, _ = parse("completion", CompletionOptions, argv, trains=False)
    try:
        import shtab
    except ImportError:
        raise NotImplementedError(
            'completion: needs the package shtab; install it: pip install "wcord-fast[completion]" (or shtab)'
        ) from None
    print(shtab.complete(all_commands(shtab.FILE, shtab.DIRECTORY), options.shell))


def all_commands(file: Any, directory: Any) -> ArgumentParser:
    """Every command with its options; `file` and `directory` are shtab's marks for options that take a path."""
    parser = ArgumentParser(prog="wcord-fast")
    commands = parser.add_subparsers()
    for name in COMMANDS:
        parents = [help_parser(name, *OPTIONS[name], file, directory)] if name in OPTIONS else []
        commands.add_parser(name, help=name, parents=parents, add_help=not parents)
    return parser
