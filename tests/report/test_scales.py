import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.report.scales import Band, Linear, Log, axis_for, inner_ticks, nice_ticks, tick_labels

ENDS = st.tuples(
    st.floats(-1e6, 1e6, allow_nan=False), st.floats(1e-6, 1e6, allow_nan=False)
).map(lambda pair: (pair[0], pair[0] + pair[1]))  # fmt: skip


@given(ENDS)
def test_nice_ticks_enclose_the_range_and_are_few(ends):
    low, high = ends
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9 * abs(low) + 1e-9
    assert ticks[-1] >= high - 1e-9 * abs(high) - 1e-9
    assert 2 <= len(ticks) <= 9


@given(ENDS)
def test_inner_ticks_stay_inside_and_are_few(ends):
    low, high = ends
    ticks = inner_ticks(low, high)
    slack = 1e-6 * (high - low) + 1e-9
    assert all(low - slack <= t <= high + slack for t in ticks)
    assert 2 <= len(ticks) <= 9


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.18, 0.36, [0.2, 0.25, 0.3, 0.35]),
        (0.5, 1, [0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        (1, 5, [1, 2, 3, 4, 5]),
    ],
)
def test_inner_ticks_mark_the_ends_where_they_are_round(low, high, ticks):
    assert inner_ticks(low, high) == pytest.approx(ticks)


def test_a_linear_axis_holds_all_values_and_maps_them_in_order():
    axis = axis_for([0.2, 0.9], 100, 300)
    assert 100 <= axis(0.2) < axis(0.9) <= 300
    assert axis(-50) == 100
    assert axis(50) == 300


def test_an_axis_of_equal_values_or_of_none_still_has_extent():
    for values in ([], [0.0], [3.0, 3.0], [-2.0]):
        axis = axis_for(values, 0, 100)
        assert axis.high > axis.low
        assert axis_for(values, 0, 100, log=True).high > 0


def test_a_logarithmic_axis_spaces_decades_evenly_and_survives_zero():
    axis = axis_for([1e-7, 1e-4, 0.0], 0, 300, log=True)
    assert isinstance(axis, Log)
    assert axis(1e-6) == pytest.approx(100)
    assert axis(0.0) == 0
    assert [text for _, text in axis.ticks()] == ["10⁻⁷", "10⁻⁶", "10⁻⁵", "10⁻⁴"]


def test_a_short_logarithmic_axis_still_has_ticks():
    assert len(Log(0.2, 0.9, 0, 100).ticks()) >= 1
    assert len(Log(3.0, 30.0, 0, 100).ticks()) >= 2


def test_ticks_of_rates_are_percentages():
    assert [text for _, text in Linear(0, 1, 0, 100, percent=True).ticks()][-1] == "100\u202f%"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 0.25, 0.5], ["0.00", "0.25", "0.50"]),
        ([0, 500, 1000], ["0", "500", "1,000"]),
        ([0, 10_000, 20_000], ["0", "10\u202fk", "20\u202fk"]),
        ([0, 1.5e6, 3e6], ["0.0", "1.5\u202fM", "3.0\u202fM"]),
    ],
)
def test_tick_labels_share_their_decimals_and_their_unit(values, labels):
    assert tick_labels(values) == labels


def test_names_that_would_touch_are_thinned_out():
    band = Band(tuple("abcdefghij"), 0, 100)
    assert len(band.ticks(width=9)) == 10
    assert [name for _, name in band.ticks(width=25)] == ["a", "d", "g", "j"]
    assert math.isclose(band(0), 5)
