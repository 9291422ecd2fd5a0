"""The command `wcord-fast` before it is known whether the driver's packages are here."""

from __future__ import annotations

import sys

from . import __version__, info
from .extras import MissingExtra

USAGE = """usage: wcord-fast COMMAND [options]

  distill     train students from a teacher, compare them in a table and a plot
              (without options: a two-minute demonstration on embedded images)
  teacher     train one network with labels only and keep its checkpoint
  table       published pairs x methods x seeds, beside the paper's numbers
  sweep       privileged distillation by method and by loss weight, by area under the ROC curve
  crossmodal  luminance teacher, chrominance student without labels, linear probes on its blocks
  evaluate    accuracy and AUC of a checkpoint on the test images
  export      a checkpoint's network as a state dict, safetensors, torch.export or ONNX file
  info        versions, devices and backends of this installation
  completion  a script that completes all of this in bash, zsh or tcsh

wcord-fast COMMAND --help lists a command's options, --dry-run prints the configuration that they amount to.
"""


def main(argv: list[str] | None = None) -> int:
    """Run `wcord-fast`; its exit code, see `train.cli`. Without the extra `train`: help, version and `info` only."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(f"wcord-fast {__version__}")
        return 0
    try:
        from .train.cli import main as run
    except MissingExtra as error:
        if arguments == ["info"]:
            print(info())
            return 0
        print(f"wcord-fast {arguments[0]}: {error}", file=sys.stderr)
        return 2
    return run(arguments)
