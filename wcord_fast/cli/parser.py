"""Read the command line and YAML files into option records: a command's own, and the Config of commands that train.

A record is a dataclass, see `options`; a field without a default is a positional argument.
Precedence: defaults < YAML file < command line. Without `--config` the file is the packaged one of the data set.
"""

from __future__ import annotations

import inspect
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .. import distill
from ..data import registry as datasets
from . import yaml_file
from .config import Config, from_dict
from .options import Option, options_of
from .usage import UsageError, did_you_mean
from .values import in_words, read, words_of

T = TypeVar("T")

CONFIGS = Path(__file__).parent / "configs"
UNLISTED = {"teacher": ("student", "teacher_checkpoint", "epochs", "lr")}  # not in the help: each is another's name
ONE_SEED = ("seed", "limit_student")
UNUSED = {  # options of a Config that a command does not use: not in its help, and refused on its command line
    "teacher": ("seeds", "limit_student", "init_student", "methods"),
    "table": ONE_SEED,
    "sweep": ONE_SEED,
    "crossmodal": ONE_SEED,
}
_piped: dict[str, dict[str, Any]] = {}  # what came through a pipe, by its path
ALIASES = {"--print-config": "--dry-run", "--print_config": "--dry-run", "--dry_run": "--dry-run"}
MOST_NAMES = 24  # listed in an option's help
CONFIG_HELP = (
    "a YAML file, or the name of a packaged one; without it that of the data set "
    f"({', '.join(f'{name}: {kind.config}' for name, kind in datasets.SOURCES.items() if kind.config)}). "
    "What is in it replaces the defaults shown here: --dry-run prints the outcome"
)


def packaged_names() -> list[str]:
    """The names of the packaged configuration files."""
    return [path.stem for path in sorted(CONFIGS.glob("*.yaml"))]


def packaged(name: str) -> str:
    """The path of a packaged configuration file, for a program that means it whatever the user's folders are called."""
    return str(CONFIGS / f"{name}.yaml")


def config_options() -> dict[str, Option]:
    """The options of a Config and of every method's section."""
    result = options_of(Config)
    for section, kind in distill.sections().items():
        result |= options_of(kind, f"{section}.")
    return result


def _training_options() -> dict[str, Option]:
    return {"config": Option(str | None, None, CONFIG_HELP, packaged_names), **config_options()}


def parse(command: str, record_type: type[T], argv: list[str], trains: bool = True) -> tuple[T, dict[str, str]]:
    """The command's own options, and the texts of a Config's options (if it `trains`), for `read_config`.

    An own option that the command line does not give is taken from the file that --config names, if that has it.
    `--help` prints the help and ends the program.

    Raises:
        UsageError: an unknown option (the nearest is suggested), or a missing or bad value.
    """
    own_options = options_of(record_type)
    file = _import_methods(argv) if trains else {}
    known = {**(_training_options() if trains else {}), **own_options}
    texts = _option_texts(argv, known, command, record_type, trains)
    for key in UNUSED.get(command, ()):
        if key in texts:
            hint = "; name the seeds with --seeds" if key == "seed" else ""
            raise UsageError(f"{_flag(key)}: not an option of {command}{hint}")
    given = {key: value for key, value in file.items() if key in own_options} | texts
    values = {key: _value(key, own_options[key], text) for key, text in given.items() if key in own_options}
    for key, option in own_options.items():
        if option.default is MISSING and key not in values:
            raise UsageError(f"{key}: expected a value, got none")
    return usage(record_type, **values), {key: text for key, text in texts.items() if key not in own_options}


def _import_methods(argv: Sequence[str]) -> dict[str, Any]:
    """Import the methods that `--methods` and `--config` name by dotted path, so that their options are known.

    Return what the file holds that `--config` names; nothing without it.
    """
    file: dict[str, Any] = {}
    for word, next_word in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        text = value if equals else next_word
        if name == "--config" and text and not text.startswith("--"):
            file = _contents(text)
        elif name == "--methods":
            _import_paths(text)
    _import_paths(file.get("methods"))
    return file


def _import_paths(methods: Any) -> None:
    """Import those of `methods`, a list or a text with commas, that are dotted paths."""
    names = methods.split(",") if isinstance(methods, str) else methods
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and ("." in name or ":" in name):
            usage(distill.parse, name)


def read_config(texts: Mapping[str, str]) -> Config:
    """The Config from option texts, by key, and from the configuration file that they name.

    Raises:
        UsageError: an unknown key in the file (the nearest is suggested), or a bad value.
    """
    values: dict[str, Any] = {}
    file = _from_file(texts)
    known = config_options()
    for key, text in {**file, **texts}.items():
        if key == "config":  # the file is read already
            continue
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = _value(key, known[key], text)
    return usage(from_dict, values)


def usage(function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """`function(...)`, whose ValueError or TypeError becomes a UsageError."""
    try:
        return function(*arguments, **keywords)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def show(values: dict[str, Any]) -> str:
    """`values` as the YAML that --dry-run prints."""
    return yaml.safe_dump(values, sort_keys=False, width=120).rstrip()


def help_parser(
    command: str, record_type: type, trains: bool, file: Any = None, directory: Any = None
) -> ArgumentParser:
    """A parser for a command's help and completion only; `parse` reads the command line.

    Args:
        command: the command's name.
        record_type: the record of the command's own options.
        trains: whether it takes a Config's options, too.
        file, directory: shtab's marks for an option that takes a path.
    """
    own_options = options_of(record_type)
    options = {**own_options, **(_training_options() if trains else {}), **own_options}  # own first
    parser = ArgumentParser(
        prog=f"wcord-fast {command}",
        usage=" ".join(["%(prog)s", *(key for key in own_options if own_options[key].default is MISSING), "[options]"]),
        description=inspect.cleandoc(record_type.__doc__ or "").partition("Attributes:")[0],
        formatter_class=RawDescriptionHelpFormatter,
    )
    groups: dict[str, Any] = {"": parser}
    for key, (hint, default, sentence, complete) in options.items():
        section = key.rpartition(".")[0]
        hidden = (*UNLISTED.get(command, ()), *UNUSED.get(command, ()))
        if (key in hidden and key not in own_options) or (section and command == "teacher"):
            continue
        if section not in groups:
            groups[section] = parser.add_argument_group(f"method {section}")
        names = list(complete()) if callable(complete) else words_of(hint)
        if default is not MISSING:
            listed = f"; {', '.join(names)}" if callable(complete) and len(names) <= MOST_NAMES else ""
            default_text = "" if default is None else f", default: {_shown(default)}"
            sentence = f"{sentence.rstrip('.')} (type: {in_words(hint)}{default_text}{listed})"
        kind: dict[str, Any] = {"action": "store_true"}
        if hint is not bool or section or default:
            name = key.rpartition(".")[2].upper()
            kind = {"choices": names or None, "metavar": key if default is MISSING else name}
        action = groups[section].add_argument(
            key if default is MISSING else _flag(key), help=sentence.replace("%", "%%"), **kind
        )
        if isinstance(complete, str):
            action.complete = {"file": file, "directory": directory}[complete]
    return parser


def _option_texts(
    argv: Sequence[str], known: dict[str, Option], command: str, record_type: type, trains: bool
) -> dict[str, str]:
    """The text of each option in `argv`, by key; a flag's is "true" or "false"."""
    flags = {_flag(key): key for key, option in known.items() if option.default is not MISSING}
    positionals = [key for key, option in known.items() if option.default is MISSING]
    texts: dict[str, str] = {}
    remaining = list(argv)
    while remaining:
        word, equals, value = remaining.pop(0).partition("=")
        if word in ("-h", "--help"):
            help_parser(command, record_type, trains).print_help()
            raise SystemExit(0)
        if not word.startswith("-") and positionals:
            texts[positionals.pop(0)] = word + equals + value
            continue
        word = ALIASES.get(word, word)
        positive = word.replace("--no-", "--", 1)
        key = flags.get(positive, "")
        if not key or (positive != word and known[key].hint is not bool):
            raise UsageError(f"unknown option {word!r}{did_you_mean(word, flags, '; see --help')}")
        if equals and positive != word:
            raise UsageError(f"{word}: expected no value, got {value!r}")
        if not equals and known[key].hint is bool:
            value = remaining.pop(0) if remaining and remaining[0] in ("true", "false") else "true"
            value = value if positive == word else "false"
        elif not equals:
            if not remaining or remaining[0].partition("=")[0] in flags:
                raise UsageError(f"{word}: expected a value, got none")
            value = remaining.pop(0)
        texts[key] = value
    return texts


def _from_file(texts: Mapping[str, str]) -> dict[str, Any]:
    """The values of the configuration file, by key: `--config`'s (a path or packaged name), or the data set's."""
    config = texts.get("config")
    if config is None:
        name = usage(datasets.source, texts.get("data", Config.data), "data").config
        if name is None:
            return {}
        config = packaged(name) if name in packaged_names() else name  # a data set of the user's may name a file
    values = _contents(config, again=True)
    _import_paths(values.get("methods"))
    known = config_options()
    result: dict[str, Any] = {}
    for key, value in values.items():
        if key not in distill.sections():
            result[str(key)] = value
        elif isinstance(value, dict):
            result |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            raise UsageError(f"{key}: expected options as NAME: VALUE, got {value!r}")
    for key in result:
        if key not in known:
            raise UsageError(f"unknown option {key!r}{did_you_mean(key, known, '; see --help')}")
    return result


def _contents(config: str, again: bool = False) -> dict[str, Any]:
    """What the configuration file `config` holds, a path or a packaged name; `again`: `parse` has read it before."""
    path = Path(config).expanduser()
    if not path.exists() or path.is_dir():
        name, names = path.name.removesuffix(".yaml"), packaged_names()
        if name not in names:
            hint = did_you_mean(name, names, f"; packaged ones: {', '.join(names)}")
            raise UsageError(f"config: no file {str(path)!r}{hint}")
        path = Path(packaged(name))
    if path.is_file():
        return usage(yaml_file.read, path)
    if again and config in _piped:  # a pipe can be read once
        return _piped[config]
    _piped[config] = usage(yaml_file.read, path)
    return _piped[config]


def _value(key: str, option: Option, value: Any) -> Any:
    try:
        return read(option.hint, value)
    except OverflowError:  # its message names no option
        raise UsageError(f"{key}: expected a number below 1.8e308, got a longer one") from None
    except ValueError as error:
        raise UsageError(f"{key}: {error}") from None


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)
