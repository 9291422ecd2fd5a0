"""What `wcord-fast` answers without the driver's packages: its commands, and its version."""

from __future__ import annotations

from . import __version__

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


def answer(arguments: list[str]) -> bool:
    """Print what `--help`, `--version` or no argument asks for; False if `arguments` ask for something else."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
    elif arguments[0] == "--version":
        print(f"wcord-fast {__version__}")
    else:
        return False
    return True
