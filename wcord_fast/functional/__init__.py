"""The functions of the library; every one is also a name of this package."""

from .bank import bank_log_z, bank_mean_score, bank_nce, bank_update_
from .kd import kd_loss
from .ot import ot_cost, ot_plan, ot_solve
from .ot_matrix import ot_cost_from_matrix, ot_plan_from_matrix, ot_solve_from_matrix
from .ot_options import OTRelaxedSolution, OTSolution
from .sinkhorn_project import sinkhorn_project

__all__ = [
    "OTRelaxedSolution",
    "OTSolution",
    "bank_log_z",
    "bank_mean_score",
    "bank_nce",
    "bank_update_",
    "kd_loss",
    "ot_cost",
    "ot_cost_from_matrix",
    "ot_plan",
    "ot_plan_from_matrix",
    "ot_solve",
    "ot_solve_from_matrix",
    "sinkhorn_project",
]
