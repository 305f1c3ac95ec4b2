"""Charts over names: lying bars, and columns where there are many names or they are numbers."""

from __future__ import annotations

from markupsafe import Markup

from holdfast.audit.findings import Chart
from holdfast.report.frame import COMPACT, WIDE, Frame, drawing, legend, said, shows_rates, tip, value_axis
from holdfast.report.numbers import aligned, short
from holdfast.report.scales import Band
from holdfast.report.svg import element, fit, text_width, title

__all__ = ["bar_chart"]

_ROWS = 40  # more bars than this stand upright, without a label each
_LABEL = 150.0  # the widest name, in pixels


def bar_chart(chart: Chart) -> tuple[Markup, bool]:
    """Bars with interval whiskers: lying, with a value at each end, unless the names are numbers or too many."""
    names = list(dict.fromkeys(str(x) for series in chart.series for x in series.x))
    numeric = not any(isinstance(x, str) for series in chart.series for x in series.x)
    if numeric:
        labels = [short(float(name)) for name in names]
        return _columns(chart, names, labels)
    return _columns(chart, names, names) if len(names) * len(chart.series) > _ROWS else (_rows(chart, names), False)


def _rows(chart: Chart, names: list[str]) -> Markup:
    parts: list[Markup] = []
    top = 10.0
    if chart.x_label:
        parts.append(element("text", fit(chart.x_label, COMPACT), x=0, y=12, class_="label"))
        top = 22.0
    if len(chart.series) > 1:
        entries, rows = legend(chart.series, top - 2, COMPACT)
        parts.append(entries)
        top += 18.0 * rows + 6
    bar = 16.0 if len(chart.series) == 1 else 13.0
    step = bar * len(chart.series) + (10.0 if len(names) <= 15 else 5.0)
    left = min(max((text_width(name) for name in names), default=0), _LABEL) + 10
    bottom = top + step * len(names)
    axis = value_axis(chart, left, COMPACT - 48, zero=True)
    grid = []
    for value, text in axis.ticks():
        at = axis(value)
        grid.append(element("line", x1=at, x2=at, y1=top, y2=bottom, class_="base" if value == 0 else None))
        grid.append(element("text", text, x=at, y=bottom + 18, class_="mid"))
    parts.append(element("g", *grid, class_="grid"))
    band = Band(tuple(names), top, bottom)
    labels = [
        element("text", title(name), fit(name, _LABEL), x=left - 10, y=band(i) + 4, class_="name end")
        for i, name in enumerate(names)
    ]
    parts.append(element("g", *labels))
    origin, rates = axis(max(0.0, axis.low)), shows_rates(chart)
    ends: list[Markup] = []  # drawn last, so that no line crosses a number
    for i, series in enumerate(chart.series):
        marks = []
        values = [f"{text}\u202f%" if rates else text for text in aligned(series.y, rate=rates)]
        for k, (x, y) in enumerate(zip(series.x, series.y, strict=False)):
            if y is None:
                continue
            low, high = (series.low[k], series.high[k]) if series.low and series.high else (None, None)
            at = band(names.index(str(x))) + (i - (len(chart.series) - 1) / 2) * bar
            end = axis(y)
            text = tip(chart, series.name, str(x), y, low, high)
            box = {"x": min(origin, end), "y": at - bar / 2 + 1, "width": abs(end - origin), "height": bar - 2}
            marks.append(element("rect", title(text), class_="bar", **box))
            reach = max(end, origin)
            if low is not None and high is not None:
                marks.append(_whisker(axis(low), at, axis(high), at))
                reach = max(reach, axis(high))
            ends.append(element("text", values[k], x=reach + 6, y=at + 4, class_="value"))
        parts.append(element("g", *marks, class_=f"s{i % 8}"))
    height = bottom + 24.0
    if chart.level is not None:
        at = axis(chart.level)
        name = chart.level_label or said(chart, chart.level)
        half = text_width(name) / 2
        middle = min(max(at, half), COMPACT - half)
        line = element("line", title(name), x1=at, x2=at, y1=top - 2, y2=bottom + 2)
        parts.append(element("g", line, element("text", name, x=middle, y=bottom + 34, class_="mid"), class_="level"))
        height += 16
    parts.append(element("g", *ends))
    if chart.y_label:
        height += 16
        parts.append(
            element("text", fit(chart.y_label, COMPACT), x=(left + COMPACT - 48) / 2, y=height - 6, class_="label mid")
        )
    return drawing(chart, COMPACT, height, *parts)


def _columns(chart: Chart, names: list[str], labels: list[str]) -> tuple[Markup, bool]:
    wide = len(names) * len(chart.series) > _ROWS
    frame = Frame.of(chart, named=chart.series, zero=True, width=WIDE if wide else COMPACT)
    band = Band(tuple(labels), frame.left, frame.right)
    marks = [frame.head, frame.grid(), frame.x_axis(band, chart.x_label)]
    room = band.step * (0.8 if band.step > 6 else 0.95)
    width = room / max(1, len(chart.series))
    floor = frame.y(max(0.0, frame.y.low)) if not chart.log_y else frame.bottom
    for i, series in enumerate(chart.series):
        bars = []
        for k, (x, y) in enumerate(zip(series.x, series.y, strict=False)):
            if y is None:
                continue
            low, high = (series.low[k], series.high[k]) if series.low and series.high else (None, None)
            place = names.index(str(x))
            start = band(place) - room / 2 + i * width
            end = frame.y(y)
            text = title(tip(chart, series.name, labels[place], y, low, high))
            box = {"x": start, "y": min(end, floor), "width": max(width - 1, 0.8), "height": abs(floor - end)}
            bars.append(element("rect", text, class_="bar", **box))
            if low is not None and high is not None and width >= 4:
                bars.append(_whisker(start + width / 2, frame.y(low), start + width / 2, frame.y(high)))
        marks.append(element("g", *bars, class_=f"s{i % 8}"))
    marks.append(frame.level(chart))
    return drawing(chart, frame.width, frame.bottom + (44 if chart.x_label else 26), *marks), wide


def _whisker(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="whisker")
