"""Heat maps: rows are series, columns their x; the darker a cell, the higher its value."""

from __future__ import annotations

import math

from markupsafe import Markup

from holdfast.audit.findings import Chart
from holdfast.report.frame import COMPACT, WIDE, drawing, said, shows_rates, tip
from holdfast.report.numbers import aligned, short
from holdfast.report.scales import Band, tick_labels
from holdfast.report.svg import element, fit, text_width, title

__all__ = ["heatmap"]

_LABEL = 150.0  # the widest name, in pixels
_LINE = 13.0  # the least distance of two lines of text
_CELLS = 2500  # larger maps have no tooltips, and leave out cells that are all but empty
_FAINT = 0.005


def heatmap(chart: Chart) -> tuple[Markup, bool]:
    """Draw a heat map; values stand in the cells where there is room. Also says whether it needs the full width."""
    names = list(dict.fromkeys(str(x) for series in chart.series for x in series.x))
    numeric = not any(isinstance(x, str) for series in chart.series for x in series.x)
    heads = tuple(short(float(name)) for name in names) if numeric else tuple(names)
    left = min(max((text_width(series.name) for series in chart.series), default=0), _LABEL) + 10
    wide = left + 34 * len(names) > COMPACT
    width = WIDE if wide else COMPACT
    columns = Band(heads, left, width - 1)
    widest = max(map(text_width, heads), default=0.0)
    upright = widest + 6 <= columns.step
    if heads and not upright:  # the last slanted name reaches beyond its column, and must not beyond the drawing
        reach = 0.72 * min(text_width(heads[-1]), _LABEL) - 0.4 * columns.step
        columns = Band(heads, left, width - 1 - max(reach, 0.0))
    top = 52.0 if upright else 34.0 + 0.72 * min(widest, _LABEL)
    rows = Band(tuple(series.name for series in chart.series), top, top + _height(len(chart.series)))
    parts = [_key(chart, width), _heads(columns, top - 8, upright=upright)]
    for place, name in list(enumerate(rows.names))[:: math.ceil(_LINE / rows.step)]:
        text = fit(name, _LABEL)
        parts.append(element("text", title(name), text, x=left - 10, y=rows(place) + 4, class_="name end"))
    parts.append(_cells(chart, names, columns, rows))
    if chart.x_label:
        parts.append(element("text", chart.x_label, x=(left + width) / 2, y=rows.end + 20, class_="label mid"))
    return drawing(chart, width, rows.end + (26 if chart.x_label else 6), *parts), wide


def _height(rows: int) -> float:
    return max(rows, 1) * (26.0 if rows <= 16 else 18.0 if rows <= 40 else 9.0)


def _heads(columns: Band, base: float, *, upright: bool) -> Markup:
    """Names above the columns, slanted where they are wider, and not all where even that is too close."""
    parts = []
    for place, head in list(enumerate(columns.names))[:: 1 if upright else math.ceil(_LINE / columns.step)]:
        x = columns(place)
        turn = None if upright else f"rotate(-45 {x:.1f} {base:.1f})"
        text = fit(head, _LABEL)
        parts.append(element("text", title(head), text, x=x, y=base, class_="mid" if upright else None, transform=turn))
    return element("g", *parts)


def _cells(chart: Chart, names: list[str], columns: Band, rows: Band) -> Markup:
    low, high = _range(chart)
    texts = aligned([y for series in chart.series for y in series.y], rate=shows_rates(chart))
    written = rows.step >= 18 and columns.step >= max((text_width(text, 11) for text in texts), default=0)
    dense = len(texts) > _CELLS
    place = {name: i for i, name in enumerate(names)}
    parts, text = [], iter(texts)
    for i, series in enumerate(chart.series):
        for x, y in zip(series.x, series.y, strict=False):
            label, k = next(text), place[str(x)]
            if y is None:
                continue
            share = min(max((y - low) / ((high - low) or 1.0), 0.0), 1.0)
            if dense and share < _FAINT:
                continue
            about = () if dense else (title(tip(chart, series.name, columns.names[k], y)),)
            corner = {"x": columns(k) - columns.step / 2 + 0.5, "y": rows(i) - rows.step / 2 + 0.5}
            size = {"width": columns.step - 1, "height": rows.step - 1}
            parts.append(element("rect", *about, class_="heat", fill_opacity=_shade(share), **corner, **size))
            if written:
                parts.append(element("text", label if y else "0", x=columns(k), y=rows(i) + 4, class_="cell mid"))
    return element("g", *parts)


def _range(chart: Chart) -> tuple[float, float]:
    known = [y for series in chart.series for y in series.y if y is not None]
    return chart.y_range or ((min(known), max(known)) if known else (0.0, 1.0))


def _key(chart: Chart, width: float) -> Markup:
    """What the rows are, and which shade means what."""
    start = width - 130.0
    steps = [
        element("rect", x=start + 10 * i, y=3, width=10, height=10, class_="heat", fill_opacity=_shade(i / 7))
        for i in range(8)
    ]
    low, high = _range(chart)
    ends = [f"{text}\u202f%" for text in tick_labels([100 * low, 100 * high])] if shows_rates(chart) else None
    first, last = ends or (said(chart, low), said(chart, high))
    label = element("text", fit(chart.y_label, width - 190), x=0, y=12, class_="label")
    end = element("text", first, x=start - 6, y=12, class_="end")
    return element("g", label, *steps, end, element("text", last, x=start + 86, y=12))


def _shade(share: float) -> str:
    # Never darker than text in the page's own ink can be read on.
    return f"{0.04 + 0.66 * share:.2f}"
