"""The training driver: `wcord-fast`, or `python -m wcord_fast`."""

from ..extras import require_train

require_train("wcord_fast.train")  # before the imports that would fail, one by one, for want of them

from .config import Config  # noqa: E402
from .loop import Run, fit  # noqa: E402
from .runs import Result, Workbench  # noqa: E402

__all__ = ["Config", "Result", "Run", "Workbench", "fit"]
