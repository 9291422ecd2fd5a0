"""`wcord-fast completion SHELL`: a script that completes commands, options and names in a shell, made by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .. import data, distill, models
from . import crossmodal, evaluate, export, sweep
from .arguments import Arguments
from .config import Config
from .parser import CONFIGS, INERT, help_of
from .table import ALL_METHODS, published

SHELLS = ("bash", "zsh", "tcsh")


def run(argv: list[str]) -> None:
    """Print the completion script of a shell: eval "$(wcord-fast completion bash)"."""
    parser = Arguments("completion", run.__doc__)
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(argv).shell
    try:
        import shtab
    except ImportError:
        raise NotImplementedError(
            'completion: needs the package shtab; install it: pip install "wcord-fast[completion]" (or shtab)'
        ) from None
    print(shtab.complete(tree(shtab.FILE, shtab.DIRECTORY), shell))


def tree(file: Any, directory: Any) -> argparse.ArgumentParser:
    """Every command with its options and the names that they take; `file` and `directory` mark what takes a path."""
    top = argparse.ArgumentParser(prog="wcord-fast")
    commands = top.add_subparsers()

    def command(name: str, fill: Callable[[argparse.ArgumentParser], None]) -> None:
        fill(commands.add_parser(name, help=name))

    def of_config(name: str) -> Callable[[argparse.ArgumentParser], None]:
        return lambda parser: _add_config(parser, INERT.get(name, ()), file, directory)

    def of_table(parser: argparse.ArgumentParser) -> None:
        for option, choices in (("--pair", ("all", *published())), ("--seeds", None), ("--budget", None)):
            parser.add_argument(option, choices=choices)
        _add_config(parser, (), file, directory, methods=["all", *ALL_METHODS])

    def of_task(own: Iterable[str]) -> Callable[[argparse.ArgumentParser], None]:
        def fill(parser: argparse.ArgumentParser) -> None:
            for name in own:
                if name not in ("output_dir", "dry_run"):  # the configuration has them too
                    parser.add_argument(
                        f"--{name.replace('_', '-')}", choices=sweep.TABLES if name == "tables" else None
                    )
            _add_config(parser, (), file, directory)

        return fill

    command("distill", of_config("distill"))
    command("teacher", of_config("teacher"))
    command("table", of_table)
    command("sweep", of_task(sweep.OPTIONS))
    command("crossmodal", of_task(crossmodal.OPTIONS))
    for name, own in (("evaluate", evaluate.arguments()), ("export", export.arguments())):
        parser = commands.add_parser(name, help=name, parents=[own], add_help=False)
        for action in parser._actions:
            if action.dest in ("checkpoint", "output", "data_dir"):
                action.complete = directory if action.dest == "data_dir" else file  # type: ignore[attr-defined]
    commands.add_parser("info", help="info")
    commands.add_parser("completion", help="completion").add_argument("shell", choices=SHELLS)
    return top


def _add_config(
    parser: argparse.ArgumentParser,
    hidden: tuple[str, ...],
    file: Any,
    directory: Any,
    methods: list[str] | None = None,
) -> None:
    names: dict[str, Any] = {
        "data": data.names(),
        "teacher": models.names(),
        "student": models.names(),
        "methods": methods or ALL_METHODS,
        "device": ("auto", "cpu", "cuda"),
    }
    paths = {"data_dir": directory, "output_dir": directory, "teacher_checkpoint": file}
    parser.add_argument("--config", choices=[p.stem for p in sorted(CONFIGS.glob("*.yaml"))], help="a YAML file")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration")
    sections = {} if hidden else distill.sections()
    kinds: dict[str, Any] = {"": Config, **{f"{name}.": kind for name, kind in sections.items()}}
    for prefix, kind in kinds.items():
        told, hints = help_of(kind), get_type_hints(kind)
        for name in (f.name for f in fields(kind) if f.name != "options" and f.name not in hidden):
            option = f"--{prefix}{name.replace('_', '-')}"
            if hints[name] is bool and not prefix:
                parser.add_argument(option, action="store_true", help=told[name])
                continue
            choices = names.get(name) if not prefix else None
            action = parser.add_argument(option, choices=choices or _choices(hints[name]), help=told[name])
            if not prefix and name in paths:
                action.complete = paths[name]  # type: ignore[attr-defined]


def _choices(hint: Any) -> list[str] | None:
    """The words that a type hint allows, if it names any."""
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    if get_origin(hint) in (Union, UnionType):
        return [word for part in get_args(hint) for word in _choices(part) or ()] or None
    return None
