"""The training driver: `wcord-fast`, or `python -m wcord_fast`."""

from .config import Config
from .loop import Run, fit
from .runs import Result, Workbench

__all__ = ["Config", "Result", "Run", "Workbench", "fit"]
