"""Many processes: torch.distributed as it is, and what the losses and the driver need of it."""

from .ranks import Ranks, bytes_sent, ranks

__all__ = ["Ranks", "bytes_sent", "ranks"]
