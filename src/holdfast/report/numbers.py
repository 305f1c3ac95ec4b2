"""Numbers for people: rates as percentages, bytes as megabytes, and as many digits as the sample supports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from holdfast.audit.findings import Metric
from holdfast.audit.record import ModelInfo

__all__ = [
    "SPACE",
    "aligned",
    "changed",
    "duration",
    "interval",
    "makeup",
    "percent",
    "quantity",
    "short",
    "shown",
    "span",
    "title_of",
    "whole",
]

SPACE = "\u202f"  # a narrow space that does not break, between a number and its unit
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def shown(metric: Metric) -> str:
    """A metric's value with its unit; a dash where it could not be computed."""
    return "–" if metric.value is None else quantity(metric.value, metric.unit, metric.n)


def title_of(metric: Metric) -> str:
    """The metric's name for people."""
    return metric.title or metric.name.replace("-", " ").replace("/", ", ")


def interval(metric: Metric) -> str:
    """The metric's 95 % interval, ``91.1 to 92.2 %``; empty where it has none."""
    if metric.low is None or metric.high is None:
        return ""
    return span(metric.low, metric.high, metric.unit, metric.n)


def changed(delta: float, metric: Metric) -> str:
    """A difference of two values of the metric, with its sign; of rates in points."""
    text = quantity(delta, "points" if metric.unit == "rate" else metric.unit, metric.n)
    return f"+{text}" if delta > 0 else text


def span(low: float, high: float, unit: str, n: int | None = None) -> str:
    """Two values, with their unit once where it is the same."""
    (first, first_unit), (_, last_unit) = _parts(low, unit, n), _parts(high, unit, n)
    return f"{first if first_unit == last_unit else quantity(low, unit, n)} to {quantity(high, unit, n)}"


def quantity(value: float, unit: str, n: int | None = None) -> str:
    """`value` in the unit of a `Metric`; `n`, the samples behind a rate, decides about its decimals."""
    text, shown_unit = _parts(value, unit, n)
    return f"{text}{SPACE}{shown_unit}" if shown_unit else text


def _parts(value: float, unit: str, n: int | None) -> tuple[str, str]:
    """Number and unit as they are shown."""
    match unit:
        case "rate" | "points":
            return _hundredfold(value, n), "%" if unit == "rate" else "points"
        case "count" | "value":
            return short(value), ""
        case "bytes":
            return _prefixed(value, "B")
        case "flops":
            return _prefixed(value, "FLOP")
        case "radius":
            return _radius(value), ""
        case _:
            return short(value), unit


def percent(value: float, n: int | None = None) -> str:
    """A rate in [0, 1] in percent: two decimals from 10,000 samples, else one; more where it would round to zero."""
    return f"{_hundredfold(value, n)}{SPACE}%"


def _hundredfold(value: float, n: int | None) -> str:
    decimals = 2 if (n or 0) >= 10_000 else 1
    scaled = 100 * value
    while scaled and abs(scaled) < 0.5 * 10.0**-decimals and decimals < 6:
        decimals += 1
    return _minus(f"{scaled:.{decimals}f}")


def short(value: float | None) -> str:
    """Three significant digits, thousands separated, exponents only for the very small and very large."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e9):
        digits, _, exponent = f"{value:.2e}".partition("e")
        return f"{_minus(digits)}{SPACE}×{SPACE}10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    if float(value).is_integer() or size >= 1000:
        return whole(value)
    decimals = max(0, 2 - math.floor(math.log10(size)))
    text = _minus(f"{value:.{decimals}f}")
    return text.rstrip("0").rstrip(".") if size < 1e-2 else text


def aligned(values: Sequence[float | None], *, rate: bool = False) -> list[str]:
    """Numbers to stand under each other: with equal decimals, about three digits in the largest of them.

    Args:
        values: None gives an empty text.
        rate: show them in percent, without the sign.
    """
    known = [100 * v if rate else v for v in values if v is not None and math.isfinite(v)]
    largest = max((abs(v) for v in known), default=0.0)
    if not 1e-4 <= largest < 1e9:
        return ["" if v is None else short(100 * v if rate else v) for v in values]
    decimals = 1 if rate else min(max(0, 2 - math.floor(math.log10(largest))), 6)
    while decimals and all(round(v, decimals) == round(v, decimals - 1) for v in known):
        decimals -= 1
    texts = []
    for value in values:
        scaled = 0.0 if value is None else 100 * value if rate else value
        lost = scaled and round(scaled, decimals) == 0  # a small number must not look like none
        text = short(scaled) if lost or not math.isfinite(scaled) else _minus(f"{scaled:,.{decimals}f}")
        texts.append("" if value is None else text)
    return texts


def whole(value: float) -> str:
    """A whole number with its thousands separated."""
    return _minus(f"{round(value):,}")


def makeup(model: ModelInfo) -> str:
    """What a model is made of: ``ResNet, 272,474 parameters``."""
    size = "only answers queries" if model.parameters is None else f"{whole(model.parameters)} parameters"
    return f"{model.architecture}, {size}"


def duration(seconds: float) -> str:
    """Wall time: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f}{SPACE}s"
    total = round(seconds)
    if total < 60:
        return f"{total}{SPACE}s"
    if total < 3600:
        return f"{total // 60}{SPACE}min {total % 60}{SPACE}s"
    return f"{total // 3600}{SPACE}h {total % 3600 // 60}{SPACE}min"


def _prefixed(value: float, unit: str) -> tuple[str, str]:
    size, prefix = next((p for p in _PREFIXES if abs(value) >= p[0]), (1.0, ""))
    return _minus(f"{value / size:.3g}"), f"{prefix}{unit}"


def _radius(value: float) -> str:
    """Perturbation sizes are thought of in steps of a byte."""
    steps = Fraction(value * 255).limit_denominator(4)
    if 0 < value < 0.3 and abs(float(steps) - value * 255) < 1e-6:
        return f"{float(steps):g}/255"
    return short(value)


def _minus(text: str) -> str:
    """`text` with a true minus sign; none before a zero."""
    if not text.startswith("-"):
        return text
    return "\u2212" + text[1:] if text.strip("-0.,") else text[1:]
