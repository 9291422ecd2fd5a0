"""Grids of parameters: every cell is there, and the cells that the default run takes have every value."""

from __future__ import annotations

import itertools

import pytest

from .grid import grid

AXES = [("abc", "xy"), ("ab", (1, 2, 3), (True, False)), ((0,), "abcd")]


@pytest.mark.parametrize("axes", AXES)
def test_default_cells_have_every_value_of_every_axis(axes):
    cells = grid(*axes)
    assert [cell.values for cell in cells] == [*itertools.product(*axes)]
    default = [cell.values for cell in cells if not cell.marks]
    assert len(default) == max(map(len, axes))
    assert [set(values) for values in zip(*default, strict=True)] == [set(axis) for axis in axes]
