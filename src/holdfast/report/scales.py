"""From values to pixels: linear, logarithmic and categorical axes, and round numbers for their ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Band", "Linear", "Log", "axis_for", "inner_ticks", "nice_ticks", "tick_labels"]

_UNITS = ((1e9, "\u202fG"), (1e6, "\u202fM"), (1e3, "\u202fk"))
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Linear:
    """Values from `low` to `high`, at pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    percent: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of `value`; values outside fall on the nearer end."""
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Values and labels of the ticks."""
        values = inner_ticks(self.low, self.high)
        if self.percent:
            return [
                (v, f"{text}\u202f%") for v, text in zip(values, tick_labels([100 * v for v in values]), strict=True)
            ]
        return list(zip(values, tick_labels(values), strict=True))


@dataclass(frozen=True)
class Log:
    """Positive values, by their logarithm; values of zero and below fall on the low end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of `value`; values outside fall on the nearer end."""
        inside = min(max(value, self.low), self.high)
        share = math.log(inside / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """The powers of ten; where fewer than two lie inside, also 2 and 5 times them."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        whole = [e for e in range(first, last + 1) if self._holds(10.0**e)]
        if len(whole) >= 2:
            stride = -(-len(whole) // 7)
            return [(10.0**e, _power(e)) for e in whole[::stride]]
        fine = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
        return [(v, f"{v:g}") for v in fine if self._holds(v)]

    def _holds(self, value: float) -> bool:
        return self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)


@dataclass(frozen=True)
class Band:
    """Names, each with an equal share of the pixels from `start` to `end`; called with a name's position."""

    names: tuple[str, ...]
    start: float
    end: float

    @property
    def step(self) -> float:
        """Pixels per name."""
        return (self.end - self.start) / max(len(self.names), 1)

    def __call__(self, place: float) -> float:
        """The middle of the share of the name at `place`."""
        return self.start + (place + 0.5) * self.step

    def ticks(self, width: float = 0.0) -> list[tuple[float, str]]:
        """Every name, or every second, third, ... one where a label `width` pixels wide would touch the next."""
        stride = max(1, math.ceil(width / self.step))
        return [(i, name) for i, name in enumerate(self.names) if i % stride == 0]


def axis_for(
    values: Iterable[float], start: float, end: float, *, log: bool = False, zero: bool = False
) -> Linear | Log:
    """An axis that holds all `values`, ending on round numbers; `zero` keeps the origin in sight."""
    known = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if log:
        low, high = (min(known), max(known)) if known else (1.0, 10.0)
        return Log(low, high, start, end) if high > low else Log(low / 10, high * 10, start, end)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        low, high = (0.0, high or 1.0) if high >= 0 else (low, 0.0)
    ticks = nice_ticks(low, high, 5)
    return Linear(min(low, ticks[0]), max(high, ticks[-1]), start, end)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten apart) that enclose [`low`, `high`]."""
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def inner_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers inside [`low`, `high`], rather a few more or fewer than to miss the ends."""
    power = 10.0 ** math.floor(math.log10(high - low))
    best: tuple[float, list[float]] = (math.inf, [])
    for step in (m * power for m in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        ticks = [round(i * step, 12) for i in range(first, last + 1)]
        missed = sum(not math.isclose(end / step, round(end / step), abs_tol=1e-6) for end in (low, high))
        crowded = 10 if len(ticks) > 9 else 0
        best = min(best, (abs(len(ticks) - count) + 2 * missed + crowded, ticks), key=lambda pair: pair[0])
    return best[1]


def tick_labels(values: list[float]) -> list[str]:
    """The values of one axis with equal decimals and one unit: ``0.25``, ``1,000``, ``20 k``, ``1.5 M``."""
    largest = max(map(abs, values), default=0.0)
    unit, letter = next((p for p in _UNITS if largest >= p[0] * (10 if p[0] == 1e3 else 1)), (1.0, ""))
    scaled = [v / unit for v in values]
    decimals = next((d for d in range(7) if all(math.isclose(round(v, d), v, abs_tol=1e-9) for v in scaled)), None)
    if decimals is None:
        return [f"{v:.2g}" for v in values]
    return [f"{v:,.{decimals}f}{letter if v else ''}" for v in scaled]


def _power(exponent: int) -> str:
    if -3 <= exponent <= 3:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(_SUPERSCRIPT)
