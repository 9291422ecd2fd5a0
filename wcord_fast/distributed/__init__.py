"""Ranks of torch.distributed, the bytes that they send, and the state of a loss that DDP must not broadcast."""

from .ddp import exclude_state
from .ranks import Ranks, bytes_sent, ranks

__all__ = ["Ranks", "bytes_sent", "exclude_state", "ranks"]
