"""Means over seeds, their intervals, and paired differences, against values worked out by hand."""

import pytest

from wcord_fast.train.estimates import difference_text, estimate, mean_text, paired

T_975_2 = 4.302652729749464  # Student's t, 2 degrees of freedom


def test_an_interval_is_that_of_students_t():
    values = estimate([1.0, 2.0, 3.0])
    half = T_975_2 / 3**0.5
    assert values.mean == 2 and values.seeds == 3
    assert values.interval == pytest.approx((2 - half, 2 + half), rel=1e-9)
    assert not values.separated and estimate([9.0, 10.0, 11.0]).separated and estimate([-9.0, -10.0, -11.0]).separated


def test_two_seeds_have_no_interval():
    values = estimate([5.0, 7.0])
    assert values.interval is None and not values.separated and mean_text(values) == "6.00"


def test_differences_pair_equal_seeds():
    difference = paired({0: 5.0, 3: 7.0, 1: 9.0, 8: 100.0}, {1: 8.0, 0: 3.0, 3: 4.0, 7: 0.0})
    assert difference == estimate([2.0, 3.0, 1.0])
    assert paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    "values, text",
    [
        ([9.9, 10.0, 10.1], "+10.00 [+9.75, +10.25]"),
        ([-1.0, 0.0, 2.0], "+0.33 [-3.46, +4.13], not separated"),
        ([1.0], "+1.00 (1 pair), not separated"),
        ([1.0, 2.0], "+1.50 (2 pairs), not separated"),
        (None, "-"),
    ],
)
def test_a_difference_in_words(values, text):
    assert difference_text(None if values is None else estimate(values)) == text
