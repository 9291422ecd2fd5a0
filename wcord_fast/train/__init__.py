"""Training of one network: loop, step, stages, checkpoints, evaluation, logs. `wcord_fast.cli` is the command."""

from ..extras import require_train

require_train("wcord_fast.train")  # before the imports that need it

from .loggers import LoggedRun, Logger  # noqa: E402
from .loop import Run, fit  # noqa: E402
from .recipe import Recipe  # noqa: E402

__all__ = ["LoggedRun", "Logger", "Recipe", "Run", "fit"]
