"""Parameter grids of which the default run takes few cells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest


def grid(*axes: Sequence) -> list:
    """Every combination of the axes' values, for `pytest.mark.parametrize`; all but a diagonal are marked `slow`.

    The diagonal has every value of every axis at least once, in as many combinations as the longest axis has values.
    """
    diagonal = {tuple(i % len(axis) for axis in axes) for i in range(max(map(len, axes)))}
    cells = itertools.product(*(range(len(axis)) for axis in axes))
    return [
        pytest.param(
            *(axis[i] for axis, i in zip(axes, cell, strict=True)),
            marks=() if cell in diagonal else pytest.mark.slow,
        )
        for cell in cells
    ]
