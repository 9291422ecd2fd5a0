"""Parameter grids of which the default run takes few cells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest


def slow(*values):
    """These values of `pytest.mark.parametrize`, marked `slow`."""
    return pytest.param(*values, marks=pytest.mark.slow)


def grid(*axes: Sequence) -> list:
    """Every combination of the axes' values, for `pytest.mark.parametrize`; all but a diagonal are marked `slow`.

    The diagonal has every value of every axis at least once, in as many combinations as the longest axis has values.
    """
    diagonal = {tuple(i % len(axis) for axis in axes) for i in range(max(map(len, axes)))}
    cells = itertools.product(*(range(len(axis)) for axis in axes))
    return [
        (pytest.param if cell in diagonal else slow)(*(axis[i] for axis, i in zip(axes, cell, strict=True)))
        for cell in cells
    ]
