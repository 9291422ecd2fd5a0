"""The plain student: cross entropy with the labels, no teacher."""

from __future__ import annotations

from .base import Method


class CE(Method):
    """Cross entropy alone; "ce+kd" is eq. (1) of the paper, with weight 1 on both terms."""

    @property
    def compares(self) -> bool:
        return self.options.kd_weight > 0
