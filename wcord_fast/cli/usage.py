"""The commands of `wcord-fast`, its help, and the error for mistakes in a command line. Imports no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable

from ..nearest import nearest

COMMANDS = {  # each is a module of this folder
    "distill": """train students from a teacher, compare them in a table and a plot
              (without options: the main job, on scikit-learn's digits, which takes minutes)""",
    "teacher": "train one network with labels only and keep its checkpoint",
    "table": "published pairs x methods x seeds, beside the paper's numbers",
    "sweep": "privileged distillation by method and by loss weight, by area under the ROC curve",
    "crossmodal": "luminance teacher, chrominance student without labels, linear probes on its blocks",
    "evaluate": "accuracy and AUC of a checkpoint on the test images",
    "export": "a checkpoint's network as a state dict, safetensors, torch.export or ONNX file",
    "taps": "the features of a network, and the modules that can give further ones, with their shapes",
    "info": "versions, devices and backends of this installation",
    "completion": "a script that completes commands and options in bash, zsh or tcsh",
}
LINES = "\n".join(f"  {name:<10}  {summary}" for name, summary in COMMANDS.items())
USAGE = f"""usage: wcord-fast COMMAND [options]

{LINES}

wcord-fast COMMAND --help lists a command's options, --dry-run prints the resulting configuration.
"""


class UsageError(ValueError):
    """A command line that cannot be used; the message says why."""


def did_you_mean(word: object, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message on the unknown `word`: the nearest of `known`, or `otherwise` if none is near."""
    near = nearest(word, known)
    return otherwise if near is None else f"; did you mean {near!r}?"
