"""Numbers in the sentences of an audit: rates in percent, their differences in points, the rest in three digits."""

from __future__ import annotations

import math

from holdfast.audit.findings import Metric

__all__ = ["bound", "interval", "quantity"]

_SUFFIX = {"rate": " %", "points": " points", "ms": " ms", "nats": " nats", "images/s": " images/s"}


def quantity(value: float, unit: str) -> str:
    """A value in the unit of a `Metric`, e.g. ``91.3 %``."""
    return f"{_digits(value, unit)}{_SUFFIX.get(unit, '')}"


def bound(value: float, unit: str) -> str:
    """A limit in the unit of a `Metric`, as exact as it was written, e.g. ``2 %``."""
    shown = 100 * value if unit in ("rate", "points") else value
    return f"{shown:.12g}{_SUFFIX.get(unit, '')}"


def interval(metric: Metric) -> str:
    """The metric's 95 % interval, e.g. ``90.7 to 91.9 %``; empty where it has none."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{_digits(metric.low, metric.unit)} to {quantity(metric.high, metric.unit)}"


def _digits(value: float, unit: str) -> str:
    if unit in ("rate", "points"):
        value *= 100
        decimals = 1
        while value and abs(value) < 0.5 * 10.0**-decimals and decimals < 6:
            decimals += 1
        text = f"{value:.{decimals}f}"
    elif value == 0 or (float(value).is_integer() and abs(value) < 1e9):
        return f"{int(value):,}"
    elif not 1e-4 <= abs(value) < 1e9:
        return f"{value:.1e}"
    else:
        text = f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".") if unit == "value" and abs(value) < 0.01 else text
    return text.removeprefix("-") if not text.strip("-0.") else text
