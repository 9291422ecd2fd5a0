"""The functions of the library; every one is also a name of this package."""

from .bank import bank_log_z, bank_mean_score, bank_nce, bank_update_
from .bank_critics import bank_infonce, bank_sigmoid
from .batch import batch_infonce, batch_sigmoid
from .kd import kd_loss
from .ot import ot_cost, ot_plan, ot_solve
from .ot_matrix import ot_cost_from_matrix, ot_plan_from_matrix, ot_solve_from_matrix
from .ot_options import OTRelaxedSolution, OTSolution
from .projection import sinkhorn_project

__all__ = [
    "OTRelaxedSolution",
    "OTSolution",
    "bank_infonce",
    "bank_log_z",
    "bank_mean_score",
    "bank_nce",
    "bank_sigmoid",
    "bank_update_",
    "batch_infonce",
    "batch_sigmoid",
    "kd_loss",
    "ot_cost",
    "ot_cost_from_matrix",
    "ot_plan",
    "ot_plan_from_matrix",
    "ot_solve",
    "ot_solve_from_matrix",
    "sinkhorn_project",
]
