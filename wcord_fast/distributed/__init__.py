"""Many processes: torch.distributed as it is, and what the losses and the driver need of it."""

from .ddp import exclude_state
from .ranks import Ranks, bytes_sent, ranks

__all__ = ["Ranks", "bytes_sent", "exclude_state", "ranks"]
