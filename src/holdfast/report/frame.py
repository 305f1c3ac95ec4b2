"""What every chart shares: the drawing area with its axes, grid, legend and reference lines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from holdfast.audit.findings import Chart, Series
from holdfast.report.numbers import percent, short
from holdfast.report.scales import Band, Linear, Log, axis_for
from holdfast.report.svg import element, fit, text_width, title

__all__ = ["COMPACT", "WIDE", "Frame", "drawing", "legend", "marker", "said", "shows_rates", "tip", "value_axis"]

COMPACT, WIDE = 460.0, 940.0  # widths; a compact drawing stays readable when a phone shrinks it to 320 px
_PLOT = 220.0

_SHAPES = (
    "M{l} {y}a{s} {s} 0 1 0 {d} 0a{s} {s} 0 1 0 -{d} 0z",  # disc
    "M{l} {t}h{d}v{d}h-{d}z",  # square
    "M{x} {t}l{s} {d}h-{d}z",  # triangle
    "M{x} {t}l{s} {s}l-{s} {s}l-{s} -{s}z",  # diamond
)


@dataclass(frozen=True)
class Frame:
    """The plot's box in pixels, its value axis, and what stands above it."""

    width: float
    left: float
    right: float
    top: float
    bottom: float
    y: Linear | Log
    head: Markup

    @classmethod
    def of(
        cls,
        chart: Chart,
        *,
        named: Sequence[Series] = (),
        right: float = 14,
        zero: bool = False,
        width: float = COMPACT,
    ) -> Frame:
        """The frame of a chart with a vertical value axis.

        Args:
            named: series listed in a legend above the plot (a single one needs none).
            right: room right of the plot.
            zero: keep the origin in sight.
            width: of the whole drawing.
        """
        head = [element("text", fit(chart.y_label, width), x=0, y=12, class_="label")] if chart.y_label else []
        top = 28.0 if head else 10.0
        if len(named) > 1:
            entries, rows = legend(named, top - 4, width)
            head.append(entries)
            top += 18.0 * rows + 4
        bottom = top + 8 + _PLOT
        y = value_axis(chart, bottom, top + 8, zero=zero)
        left = max((text_width(text) for _, text in y.ticks()), default=20) + 10
        return cls(width, left, width - right, top, bottom, y, Markup("").join(head))

    def grid(self) -> Markup:
        """Horizontal lines with their values; the chart's own line at zero is stronger."""
        parts = []
        for value, text in self.y.ticks():
            y = self.y(value)
            parts.append(
                element("line", x1=self.left, x2=self.right, y1=y, y2=y, class_="base" if value == 0 else None)
            )
            parts.append(element("text", text, x=self.left - 8, y=y + 4, class_="end"))
        return element("g", *parts, class_="grid")

    def x_axis(self, axis: Linear | Log | Band, label: str) -> Markup:
        """Ticks and label below the plot."""
        if isinstance(axis, Band):
            widest = max((text_width(name) for name in axis.names), default=0)
            room = min(widest, 120.0)
            ticks = [(v, fit(name, 120)) for v, name in axis.ticks(room + 8)]
        else:
            ticks = axis.ticks()
        parts = [element("line", x1=self.left, x2=self.right, y1=self.bottom, y2=self.bottom, class_="base")]
        for value, text in ticks:
            # a label at the rim of the drawing leans inwards
            x = min(axis(value), self.width - text_width(text) / 2)
            parts.append(element("text", text, x=x, y=self.bottom + 18, class_="mid"))
        middle = (self.left + self.right) / 2
        if label:
            text = fit(label, self.width - 20)
            parts.append(element("text", text, x=middle, y=self.bottom + 38, class_="label mid"))
        return element("g", *parts, class_="grid")

    def level(self, chart: Chart, curves: Sequence[Sequence[tuple[float, float]]] = ()) -> Markup:
        """The horizontal reference line; its name stands at the end, above or below, where the curves leave room."""
        if chart.level is None:
            return Markup("")
        y = self.y(chart.level)
        name = fit(chart.level_label or said(chart, chart.level), self.right - self.left)
        width = text_width(name)
        places = [
            (start, base)
            for start in (self.left + 4, self.right - width - 4)
            for base in (y - 5, y + 14)
            if self.top + 8 <= base <= self.bottom
        ]
        x, base = min(
            places or [(self.left + 4, y - 5)], key=lambda p: _crowding(curves, p[0], p[0] + width, p[1] - 11, p[1] + 3)
        )
        return element(
            "g",
            element("line", title(name), x1=self.left, x2=self.right, y1=y, y2=y),
            element("text", name, x=x, y=base),
            class_="level",
        )


def _crowding(
    curves: Sequence[Sequence[tuple[float, float]]], left: float, right: float, top: float, bottom: float
) -> int:
    """How many of 16 points along each stretch of each curve lie in a box."""
    return sum(
        left <= x1 + (x2 - x1) * t / 16 <= right and top <= y1 + (y2 - y1) * t / 16 <= bottom
        for curve in curves
        for (x1, y1), (x2, y2) in itertools.pairwise(curve)
        for t in range(17)
    )


def value_axis(chart: Chart, start: float, end: float, *, zero: bool = False) -> Linear | Log:
    """The axis of the chart's values with their intervals: its declared range, or one that holds them all."""
    if chart.y_range is not None and not chart.log_y and chart.y_range[1] > chart.y_range[0]:
        return Linear(*chart.y_range, start, end, percent=shows_rates(chart))
    values: list[float] = []
    for series in chart.series:
        values += [v for v in series.y if v is not None]
        values += (series.low or []) + (series.high or [])
    if chart.level is not None:
        values.append(chart.level)
    if zero and chart.log_y:  # a bar of the lowest height must still be seen
        values.append(0.5 * min((v for v in values if v > 0), default=1.0))
    return axis_for(values, start, end, log=chart.log_y, zero=zero)


def shows_rates(chart: Chart) -> bool:
    """Whether the values are shares, shown in percent: those whose range is declared to be 0 to 1."""
    return chart.y_range == (0, 1)


def said(chart: Chart, value: float | None) -> str:
    """A value of the chart in words."""
    return percent(value) if value is not None and shows_rates(chart) else short(value)


def legend(series: Iterable[Series], top: float, width: float) -> tuple[Markup, int]:
    """Marker and name of each series, in as many rows as they need; returns the drawing and the number of rows."""
    parts, x, row = [], 0.0, 0
    for i, one in enumerate(series):
        name = fit(one.name, width - 24)
        needs = text_width(name) + 34
        if x and x + needs > width + 16:
            x, row = 0.0, row + 1
        y = top + 18 * row + 8
        mark = element("g", marker(i, x + 6, y - 4, one.name, size=5), class_=f"s{i % 8}")
        parts.append(mark + element("text", name, x=x + 16, y=y, class_="name"))
        x += needs
    return element("g", *parts), row + 1


def marker(i: int, x: float, y: float, text: str, size: float = 4) -> Markup:
    """The mark of the series at place `i`: eight colours times four shapes before a pair repeats."""
    shape = _SHAPES[(i + i // 8) % 4]
    values = {"x": x, "y": y, "l": x - size, "t": y - size, "s": size, "d": 2 * size}
    path = shape.format(**{name: f"{v:.1f}".removesuffix(".0") for name, v in values.items()})
    return element("path", title(text), d=path, class_="mark")


def tip(chart: Chart, name: str, x: str | float, y: float, low: float | None = None, high: float | None = None) -> str:
    """What a mark says when pointed at."""
    where = x if isinstance(x, str) else short(x)
    interval = f" ({said(chart, low)} to {said(chart, high)})" if low is not None and high is not None else ""
    return f"{f'{name}, ' if name else ''}{where}: {said(chart, y)}{interval}"


def drawing(chart: Chart, width: float, height: float, *marks: str) -> Markup:
    """The outermost element, with a description for those who do not see it."""
    names = [series.name for series in chart.series if series.name]
    axes = " by ".join(part for part in (chart.y_label, chart.x_label) if part)
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    about = ". ".join(part for part in (chart.title, axes, listed) if part)
    return element(
        "svg",
        element("desc", about),
        *marks,
        viewBox=f"0 0 {math.ceil(width)} {math.ceil(height)}",
        width=math.ceil(width),
        height=math.ceil(height),
        role="img",
        aria_label=about,
        class_="chart",
    )
