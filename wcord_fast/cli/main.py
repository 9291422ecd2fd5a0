"""`wcord-fast`, or `python -m wcord_fast`: print help or run a command."""

from __future__ import annotations

import importlib
import io
import os
import sys

from ..extras import MissingExtra, require_train
from .usage import COMMANDS, USAGE, UsageError, did_you_mean


def main(argv: list[str] | None = None) -> int:
    """Run `wcord-fast` and return its exit code: 0 on success, 1 for an error, 2 for a wrong command line or a missing
    package, 130 when interrupted, 141 when its output was closed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that the terminal cannot encode
    name, *options = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if name == "--version":
        from .. import __version__

        print(f"wcord-fast {__version__}")
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        print(f"wcord-fast: unknown command {name!r}; expected {', '.join(COMMANDS)}{hint}", file=sys.stderr)
        return 2
    try:
        return _run(name, options)
    except (MissingExtra, UsageError) as error:
        print(f"wcord-fast {name}: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:  # the help was printed
        return int(end.code or 0)
    except BrokenPipeError:  # the reader of our output closed it (`| head`); finished epochs are kept
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(name: str, options: list[str]) -> int:
    if name == "info":  # needs the library's dependencies only
        from .info import run

        run(options)
        sys.stdout.flush()
        return 0
    require_train("this command")
    if "" not in sys.path:
        sys.path.append("")  # the working directory, for dotted paths to a user's code, as under `python -m`
    from .job import run_job

    return run_job(name, importlib.import_module(f".{name}", __package__).run, options)


if __name__ == "__main__":
    sys.exit(main())
