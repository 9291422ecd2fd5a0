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
from .usage import UsageError
from .values import Reader, RefusedValue

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


def parse(command: str, argv: list[str], description: str) -> Config:
    """The configuration that `argv` asks for.

    Raises:
        UsageError: an unknown option or key (the nearest is suggested), or a bad value.
    """
    parser = _parser(command, description)
    words = _with_config(_spelled_out(argv, ELSEWHERE.get(command, ("dry_run",))))
    try:
        namespace = parser.parse_args(words)
    except RefusedValue as error:
        raise UsageError(str(error)) from None
    except argparse.ArgumentError as error:  # of jsonargparse: what is promised is checked before it is asked
        raise UsageError(" ".join(str(error).split())) from None
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
        kind_of_value = Reader(prefix + f.name, hints[f.name])
        parser.add_argument(option, type=kind_of_value, default=default, help=shown)


def _spelled_out(argv: list[str], elsewhere: Collection[str]) -> list[str]:
    """`argv` with every option as `--name=value`, a flag as `--quiet=true`; `elsewhere`: options taken before.

    Raises:
        UsageError: an option that there is not, or one without its value.
    """
    hints = _hints()
    known = {f"--{name.replace('_', '-')}": hint for name, hint in hints.items()} | {"--config": str}
    spelled, rest = [], list(argv)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        positive = option.replace("--no-", "--", 1)
        if option in ("-h", "--help"):
            return ["--help"]
        if (positive != option and known.get(positive) is not bool) or positive not in known:
            raise UsageError(_unknown(option, [*hints, *elsewhere]))
        if equals and positive != option:
            raise UsageError(f"{option}: expected no value, got {value!r}")
        if equals:
            spelled.append(f"{option}={value}")
        elif known[positive] is bool and (not rest or rest[0] not in ("true", "false")):
            spelled.append(f"{positive}={'true' if positive == option else 'false'}")
        elif not rest or rest[0].split("=")[0] in known:
            raise UsageError(f"{option}: expected a value, got none")
        else:
            spelled.append(f"{option}={rest.pop(0)}")
    return spelled


def _with_config(argv: list[str]) -> list[str]:
    """`argv` with its configuration file first, found by name if packaged; without one, the data set's."""
    config, rest = take("--config", argv)
    if config is None:
        data, _ = take("--data", argv)
        packaged = PACKAGED.get(data or Config.data)
        return argv if packaged is None else [f"--config={CONFIGS / packaged}.yaml", *argv]
    path = Path(config).expanduser()
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
    _require_known(values)
    content = yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=2**30)
    return [f"--config={content}", *rest] if values else rest


def show(values: dict[str, Any]) -> str:
    """`values` as the YAML that --dry-run prints."""
    return yaml.safe_dump(values, sort_keys=False, width=120).rstrip()


def take_dry_run(argv: list[str]) -> tuple[list[str], bool]:
    """The other arguments, and whether --dry-run, or its other name --print-config, is among them."""
    rest = [word for word in argv if word.replace("_", "-") not in ("--dry-run", "--print-config")]
    return rest, len(rest) < len(argv)


def take(option: str, argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of `option` in `argv` (None if it is not there), and the other arguments."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument(option, dest="value")
    known, rest = finder.parse_known_args(argv)
    return known.value, rest


def _hints() -> dict[str, Any]:
    """Type hint of every option, by its key: "epochs", "wcord.critic"."""
    found = {name: hint for name, hint in get_type_hints(Config).items() if name != "options"}
    for section, kind in distill.sections().items():
        hints = get_type_hints(kind)
        found |= {f"{section}.{f.name}": hints[f.name] for f in fields(kind)}
    return found


def _require_known(values: dict[str, Any]) -> None:
    """UsageError naming the first key of a configuration file that there is not."""
    sections, known = distill.sections(), _hints()
    for key, value in values.items():
        if key in sections and not isinstance(value, dict):
            raise UsageError(f"{key}: expected options as NAME: VALUE, got {value!r}")
        for name in [f"{key}.{inner}" for inner in value] if key in sections else [key]:
            if name not in known:
                raise UsageError(_unknown(str(name), list(known)))


def _unknown(name: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), keys, n=1)
    shown = f"--{near[0].replace('_', '-')}" if near and name.startswith("-") else near[0] if near else ""
    return f"unknown option {name!r}" + (f"; did you mean {shown!r}?" if near else "; see --help")
