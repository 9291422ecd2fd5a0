"""RepDistiller's loss as RepDistiller's scripts make it: `criterion_kd = CRDLoss(opt)`. Only the import changes.

# from crd.criterion import CRDLoss
from wcord_fast.repdistiller import CRDLoss
"""

from __future__ import annotations

from .nn import CRDLoss as _CRDLoss

__all__ = ["CRDLoss"]

CRDLoss = _CRDLoss.from_opt
