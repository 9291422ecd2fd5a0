"""Knowledge distillation alone (Hinton et al. 2015) with CRD's weights: 0.1 for labels, 0.9 for the teacher."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Method, Options


@dataclass
class KDOptions(Options):
    """Options of "kd".

    Attributes:
        ce_weight: weight of the cross entropy with the labels.
        kd_weight: weight of T^2 KL(teacher || student).
    """

    ce_weight: float = 0.1
    kd_weight: float = 0.9


class KD(Method):
    """The base method with a KD weight that is not zero."""
