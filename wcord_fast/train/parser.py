"""Command line and YAML to a Config. Precedence: defaults < YAML file < command line.

Without `--config` it is the packaged file of the data set: digits.yaml, for CIFAR-100 a published pair.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Collection
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from .. import distill
from . import yaml_file
from .config import Config, from_dict

CONFIGS = Path(__file__).parent / "configs"
INERT = {"teacher": ("student", "teacher_checkpoint", "methods", "epochs", "lr")}  # read from a file, and not used
ELSEWHERE = {"table": ("pair", "seeds", "budget")}  # options that are taken before the configuration's
PACKAGED = {
    "digits": "digits",
    "cifar10": "cifar10",
    "cifar100": "cifar100_resnet32x4_resnet8x4",
    "imagenet": "imagenet_resnet34_resnet18",
}


CONFIG_HELP = (
    "a YAML file, or the name of a packaged one; without it that of the data set "
    f"({', '.join(f'{data}: {name}' for data, name in PACKAGED.items())}). "
    "What is in it replaces the defaults shown here: --dry-run prints the outcome"
)


class UsageError(ValueError):
    """What the user typed cannot be used; the message says why."""


def parse(command: str, argv: list[str], description: str) -> Config:
    """The configuration that `argv` asks for.

    Raises:
        UsageError: an unknown option or key (the nearest is suggested), or a bad value.
    """
    parser = _parser(command, description)
    words = _with_config(_spelled_out(argv))
    try:
        namespace = parser.parse_args(words)
    except argparse.ArgumentError as error:
        raise UsageError(_explain(str(error), [*_keys(), *ELSEWHERE.get(command, ("dry_run",))])) from None
    except OverflowError:  # of float(value), which names nothing
        huge = re.search(r"([\w.-]+)[=:\s]+[+-]?\d{309}", " ".join(words))
        name = f"{huge[1].lstrip('-').replace('-', '_')}: " if huge else ""
        raise UsageError(f"{name}expected a number below 1.8e308, got a longer one") from None
    values = namespace.as_dict()
    values.pop("config")
    try:
        return from_dict(values)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


def help_of(kind: type) -> dict[str, str]:
    """Field name -> sentence, from "Attributes:" in the docstrings of a dataclass and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        text = (cls.__doc__ or "").partition("Attributes:")[2]
        for name, sentence in re.findall(r"^\s+(\w+): (.+(?:\n\s{9,}.+)*)", text, re.M):
            found[name] = " ".join(sentence.split()).replace("%", "%%")
    return found


def _parser(command: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"wcord-fast {command}",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,  # --dry-run, with the values checked
    )
    parser.add_argument("--config", action="config", help=CONFIG_HELP)
    hidden = INERT.get(command, ())
    _add_fields(parser, Config, prefix="", hidden=hidden)
    for section, kind in distill.sections().items():
        group = parser.add_argument_group(f"method {section}")
        _add_fields(group, kind, prefix=f"{section}.", hidden=[f.name for f in fields(kind)] if hidden else ())
    return parser


def _add_fields(parser: Any, kind: type, prefix: str, hidden: Collection[str]) -> None:
    told, hints = help_of(kind), get_type_hints(kind)
    for f in fields(kind):
        if f.name == "options":
            continue
        default = f.default if f.default_factory is MISSING else f.default_factory()
        shown = argparse.SUPPRESS if f.name in hidden else told[f.name]
        option = f"--{prefix}{f.name.replace('_', '-')}"
        parser.add_argument(option, type=hints[f.name], default=default, help=shown)


def _spelled_out(argv: list[str]) -> list[str]:
    """`argv` with flags and lists as jsonargparse reads them: `--quiet=true`, `--methods=[ce,wcord]`."""
    hints = get_type_hints(Config)
    for section, kind in distill.sections().items():
        hints |= {f"{section}.{name}": hint for name, hint in get_type_hints(kind).items()}
    kinds = {f"--{name.replace('_', '-')}": hint for name, hint in hints.items()}
    spelled, rest = [], list(argv)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        positive = option.replace("--no-", "--", 1)
        if not equals and kinds.get(positive) is bool and (not rest or rest[0] not in ("true", "false")):
            spelled.append(f"{positive}={'true' if positive == option else 'false'}")
        elif kinds.get(option) in (list[str], list[float]) and (equals or rest):
            value = value if equals else rest.pop(0)
            spelled.append(f"{option}={value if value.startswith('[') else f'[{value}]'}")
        else:
            spelled.append(option + equals + value)
    return spelled


def _with_config(argv: list[str]) -> list[str]:
    """`argv` with its configuration file first, found by name if packaged; without one, the data set's."""
    config, rest = take("--config", argv)
    if config is None:
        data, _ = take("--data", argv)
        packaged = PACKAGED.get(data or Config.data)
        return argv if packaged is None else [f"--config={CONFIGS / packaged}.yaml", *argv]
    path = Path(config)
    if not path.exists():
        known = {p.stem: p for p in sorted(CONFIGS.glob("*.yaml"))}
        name = path.name.removesuffix(".yaml")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; packaged ones: {', '.join(known)}"
            raise UsageError(f"config: no file {str(path)!r}{hint}")
        path = known[name]
    try:
        values = yaml_file.read(path)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if isinstance(values.get("methods"), str):  # as on the command line
        values["methods"] = values["methods"].split(",")
    content = yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=2**30)
    return [f"--config={content}", *rest] if values else rest


def take(option: str, argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of `option` in `argv` (None if it is not there), and the other arguments."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument(option, dest="value")
    known, rest = finder.parse_known_args(argv)
    return known.value, rest


def _keys() -> list[str]:
    own = [f.name for f in fields(Config) if f.name != "options"]
    return own + [f"{section}.{f.name}" for section, kind in distill.sections().items() for f in fields(kind)]


def _explain(message: str, keys: list[str]) -> str:
    """jsonargparse's message in one line: field, expectation, value, and the name nearest to a misspelt one."""
    message = re.sub(r"<class '(\w+)'>", r"\1", " ".join(message.split())).replace("typing.", "")
    bad = re.search(r'Parser key "([^"]+)": (.*)', message)
    if bad:
        value = re.search(r"(?:Got value|Given value type: \w+ Given value): (.*)", bad[2])
        wanted = re.findall(r"Expected an? (.+?)(?=\. Got| - | Given|$)", bad[2])
        if value and wanted:
            said = " or ".join(dict.fromkeys(w.replace("NoneType", "null") for w in wanted))
            near = difflib.get_close_matches(value[1], re.findall(r"'([^']+)'", said), n=1)
            return f"{bad[1]}: expected {said}, got {value[1]!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        return f"{bad[1]}: {bad[2]}"
    unknown = re.search(r"unrecognized arguments: (\S+)", message) or re.search(r"[Oo]ption '([^']+)'", message)
    if unknown:
        name = unknown[1].split("=")[0]
        near = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), keys, n=1)
        shown = f"--{near[0].replace('_', '-')}" if near and name.startswith("-") else near[0] if near else ""
        return f"unknown option {name!r}" + (f"; did you mean {shown!r}?" if near else "; see --help")
    return message
