import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.audit.findings import Metric
from holdfast.report.numbers import aligned, changed, duration, interval, percent, quantity, short, shown

S = "\u202f"


def test_rates_have_as_many_decimals_as_the_sample_supports():
    assert percent(0.9164, 10_000) == f"91.64{S}%"
    assert percent(0.9164, 1000) == f"91.6{S}%"
    assert percent(0.9164) == f"91.6{S}%"


def test_a_small_rate_is_never_shown_as_none():
    assert percent(0.0003, 1000) == f"0.03{S}%"
    assert percent(0.0) == f"0.0{S}%"
    assert aligned([0.9, 0.00004]) == ["0.9", f"4.00{S}×{S}10⁻⁵"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.05, "points", f"5.0{S}points"),
        (-0.05, "points", f"−5.0{S}points"),
        (0.312, "nats", f"0.312{S}nats"),
        (269_722, "count", "269,722"),
        (1_092_318, "bytes", f"1.09{S}MB"),
        (40_810_000, "flops", f"40.8{S}MFLOP"),
        (8 / 255, "radius", "8/255"),
        (0.5, "radius", "0.500"),
        (1.5 / 255, "radius", "1.5/255"),
        (2.4e-6, "value", f"2.40{S}×{S}10⁻⁶"),
        (0, "value", "0"),
    ],
)
def test_quantities_are_shown_in_their_unit(value, unit, text):
    assert quantity(value, unit) == text


def test_an_interval_names_its_unit_once():
    metric = Metric(name="accuracy", value=0.9, low=0.88, high=0.92, n=1000, unit="rate")
    assert interval(metric) == f"88.0 to 92.0{S}%"
    assert interval(Metric(name="size", value=5, low=900, high=2000, unit="bytes")) == f"900{S}B to 2{S}kB"
    assert interval(Metric(name="x", value=1.0)) == ""


def test_differences_of_rates_are_points_with_a_sign():
    metric = Metric(name="accuracy", value=0.9, n=1000, unit="rate")
    assert changed(0.02, metric) == f"+2.0{S}points"
    assert changed(-0.02, metric) == f"−2.0{S}points"


def test_a_value_that_could_not_be_computed_is_a_dash():
    assert shown(Metric(name="x", value=None)) == "–"


def test_a_column_of_numbers_has_equal_decimals_without_idle_zeros():
    assert aligned([0.002, 0.0, 0.012, None]) == ["0.002", "0.000", "0.012", ""]
    assert aligned([0.5, 0.25]) == ["0.50", "0.25"]
    assert aligned([1.0, 2.0]) == ["1", "2"]
    assert aligned([0.912, 1.0], rate=True) == ["91.2", "100.0"]


@given(st.floats(allow_nan=False, allow_infinity=False, width=32).filter(lambda v: v == 0 or abs(v) > 1e-30))
def test_short_numbers_can_be_read_back_to_three_digits(value):
    text = short(value).replace("\u2212", "-").replace(",", "")
    digits, _, power = text.partition(f"{S}×{S}10")
    superscripts = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    read = float(digits) * 10.0 ** int(power.translate(superscripts) or 0)
    assert math.isclose(read, value, rel_tol=5.1e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, f"0.4{S}s"), (59.6, f"1{S}min 0{S}s"), (412.7, f"6{S}min 53{S}s"), (7500, f"2{S}h 5{S}min")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text
