"""The modules of the library: they hold options and buffers, and call `wcord_fast.functional`."""

from .contrast import Contrast
from .crd import CRDLoss
from .embed import Embed
from .kd import KDLoss
from .memory_bank import MemoryBank
from .options import ContrastOptions, WCoRDLossOptions
from .ot import OTLoss
from .own_critic import register_critic
from .queue import FeatureQueue
from .sampler import NegativeSampler
from .wcord import WCoRDLoss

__all__ = [
    "CRDLoss",
    "Contrast",
    "ContrastOptions",
    "Embed",
    "FeatureQueue",
    "KDLoss",
    "MemoryBank",
    "NegativeSampler",
    "OTLoss",
    "WCoRDLoss",
    "WCoRDLossOptions",
    "register_critic",
]
