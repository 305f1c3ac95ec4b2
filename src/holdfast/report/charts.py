"""`Chart` to SVG: curves with interval bands, histograms and scatter plots; `bars` and `heatmaps` draw the others.

The drawings are small vector pictures without colours of their own (see `svg`), every mark has a tooltip, and series
differ by marker shape as well as by colour.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from holdfast.audit.findings import Chart, Series
from holdfast.report.bars import bar_chart
from holdfast.report.frame import Frame, drawing, marker, shows_rates, tip
from holdfast.report.heatmaps import heatmap
from holdfast.report.numbers import short
from holdfast.report.scales import Band, Linear, Log, axis_for
from holdfast.report.svg import element, fit, text_width, title

__all__ = ["Drawing", "draw"]

_MARKED = 30  # curves of more points are drawn without markers
_LINE = 14.0  # the distance of two names at the ends of curves
_HITS = 200  # curves of more points have no tooltips
_POINTS = 1500  # scatter plots of more points are thinned evenly


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Drawing:
    """An SVG element, and whether it needs the full width of the page."""

    svg: Markup
    wide: bool = False


def draw(chart: Chart) -> Drawing:
    """Draw a chart. The same chart always gives the same text."""
    match chart.kind:
        case "bar":
            return Drawing(*bar_chart(chart))
        case "heatmap":
            return Drawing(*heatmap(chart))
        case "histogram" if not _categories(chart):
            return Drawing(_histogram(chart))
        case "histogram":  # of names, which have no edges
            return Drawing(*bar_chart(chart))
        case "scatter":
            return Drawing(_curves(chart, joined=False))
        case _:
            return Drawing(_curves(chart, joined=True))


def _curves(chart: Chart, *, joined: bool) -> Markup:
    names = _categories(chart)
    ends = _end_labels(chart) if joined else None
    frame = Frame.of(chart, named=chart.series if ends is None else (), right=14 if ends is None else ends)
    points = [_points(series, names) for series in chart.series]
    x_axis = _x_axis(chart, frame, names, [p.x for one in points for p in one])
    marks = [frame.head, frame.grid(), frame.x_axis(x_axis, chart.x_label)]
    if chart.diagonal and not isinstance(x_axis, Band):
        marks.append(_diagonal(x_axis, frame.y))
    curves = [[(x_axis(p.x), frame.y(p.y)) for p in drawn] for drawn in points]
    marks.append(frame.level(chart, curves))
    last: list[tuple[float, int, str]] = []
    for i, (series, drawn, at) in enumerate(zip(chart.series, points, curves, strict=True)):
        tips = [tip(chart, series.name, names[int(p.x)] if names else p.x, p.y, p.low, p.high) for p in drawn]
        if joined:
            inside = [_band(drawn, x_axis, frame), *_curve(i, at, tips)]
        else:
            stride = -(-len(at) // max(1, _POINTS // len(chart.series)))
            inside = [marker(i, x, y, t, size=3) for (x, y), t in list(zip(at, tips, strict=True))[:: max(1, stride)]]
        marks.append(element("g", *inside, class_=f"s{i % 8}"))
        if at:
            last.append((at[-1][1], i, series.name))
    if ends is not None:
        marks.append(_direct_labels(last, frame))
    return drawing(chart, frame.width, frame.bottom + (44 if chart.x_label else 26), *marks)


def _curve(i: int, at: list[tuple[float, float]], tips: list[str]) -> list[Markup]:
    """A line with a marker at every point, or, of many points, a line told apart by its dashes."""
    dense = len(at) > _MARKED
    line = element("polyline", points=_path(at), class_=f"line d{i % 4}" if dense else "line")
    if not dense:
        return [line, *(marker(i, x, y, t) for (x, y), t in zip(at, tips, strict=True))]
    hits = (element("circle", title(t), cx=x, cy=y, r=5, class_="hit") for (x, y), t in zip(at, tips, strict=True))
    return [line, *hits] if len(at) <= _HITS else [line]


def _band(points: list[_Point], x_axis: Linear | Log | Band, frame: Frame) -> Markup:
    known = [(x_axis(p.x), frame.y(p.low), frame.y(p.high)) for p in points if p.low is not None and p.high is not None]
    if len(known) < 2:
        return Markup("")
    outline = [(x, low) for x, low, _ in known] + [(x, high) for x, _, high in reversed(known)]
    return element("polygon", points=_path(outline), class_="band")


def _x_axis(chart: Chart, frame: Frame, names: list[str], values: list[float]) -> Linear | Log | Band:
    if names:
        return Band(tuple(names), frame.left, frame.right)
    if chart.log_x or not values or min(values) == max(values):
        return axis_for(values, frame.left, frame.right, log=chart.log_x)
    low, high = (0.0, 1.0) if chart.diagonal and shows_rates(chart) else (min(values), max(values))
    # Data fill the width, the ticks stay round; where rate stands over rate, both axes are in percent.
    return Linear(low, high, frame.left, frame.right, percent=chart.diagonal and shows_rates(chart))


def _histogram(chart: Chart) -> Markup:
    frame = Frame.of(chart, named=chart.series, zero=True)
    bins = [_bins(series) for series in chart.series]
    edges = [e for one in bins for left, right, _ in one for e in (left, right)]
    x_axis = _x_axis(chart.model_copy(update={"log_x": False}), frame, [], edges)
    marks = [frame.head, frame.grid(), frame.x_axis(x_axis, chart.x_label)]
    floor = frame.y(max(0.0, frame.y.low))
    for i, (series, one) in enumerate(zip(chart.series, bins, strict=True)):
        if not one:
            continue
        outline, hits = [(x_axis(one[0][0]), floor)], []
        for left, right, height in one:
            a, b, y = x_axis(left), x_axis(right), frame.y(height)
            outline += [(a, y), (b, y)]
            text = tip(chart, series.name, f"{short(left)} to {short(right)}", height)
            hits.append(element("rect", title(text), x=a, y=y, width=b - a, height=max(0.0, floor - y), class_="hit"))
        outline.append((x_axis(one[-1][1]), floor))
        area = element("polygon", points=_path(outline), class_="area-fill")
        line = element("polyline", points=_path(outline), class_=f"line thin d{i % 4}")
        marks.append(element("g", area, line, *hits, class_=f"s{i % 8}"))
    marks.append(frame.level(chart))
    return drawing(chart, frame.width, frame.bottom + (44 if chart.x_label else 26), *marks)


def _bins(series: Series) -> list[tuple[float, float, float]]:
    """Left edge, right edge and height of each bin; `x` holds edges when it is one longer than `y`, else centres."""
    x, y = [float(v) for v in series.x], series.y
    if len(x) == len(y) + 1:
        edges = x
    elif len(x) > 1:
        middles = [(a + b) / 2 for a, b in itertools.pairwise(x)]
        edges = [2 * x[0] - middles[0], *middles, 2 * x[-1] - middles[-1]]
    else:
        edges = [v + d for v in x for d in (-0.5, 0.5)]
    return [(a, b, h) for a, b, h in zip(edges, edges[1:], y, strict=False) if h is not None]


def _categories(chart: Chart) -> list[str]:
    """The names along x in order of appearance; empty when x is numeric."""
    if not any(isinstance(x, str) for series in chart.series for x in series.x):
        return []
    return list(dict.fromkeys(str(x) for series in chart.series for x in series.x))


def _points(series: Series, names: list[str]) -> list[_Point]:
    places = {name: i for i, name in enumerate(names)}
    xs: Sequence[float | str] = series.x
    lows: Sequence[float | None] = series.low or [None] * len(series.y)
    highs: Sequence[float | None] = series.high or [None] * len(series.y)
    return [
        _Point(float(places[str(x)]) if names else float(x), y, low, high)
        for x, y, low, high in zip(xs, series.y, lows, highs, strict=False)
        if y is not None
    ]


def _end_labels(chart: Chart) -> float | None:
    """The room that names at the ends of the curves need; None when a legend serves better."""
    if not 2 <= len(chart.series) <= 6:
        return None
    width = max(text_width(series.name) for series in chart.series)
    last = {str(series.x[-1]) for series in chart.series if series.x}
    return width + 16 if width <= 104 and len(last) == 1 and not chart.diagonal else None


def _direct_labels(labels: list[tuple[float, int, str]], frame: Frame) -> Markup:
    """Names beside the last points, pushed apart where they would overlap."""
    ordered = sorted(labels)
    heights = [y for y, _, _ in ordered]
    for k in range(1, len(heights)):  # downwards from the top ...
        heights[k] = max(heights[k], heights[k - 1] + _LINE)
    for k in reversed(range(len(heights))):  # ... and back up from the floor
        heights[k] = min(heights[k], heights[k + 1] - _LINE if k + 1 < len(heights) else frame.bottom)
    texts = (
        element("text", fit(name, 110), x=frame.right + 9, y=y + 4, class_=f"name s{i % 8}")
        for y, (_, i, name) in zip(heights, ordered, strict=True)
    )
    return element("g", *texts)


def _diagonal(x_axis: Linear | Log, y_axis: Linear | Log) -> Markup:
    low, high = max(x_axis.low, y_axis.low), min(x_axis.high, y_axis.high)
    return element("line", x1=x_axis(low), y1=y_axis(low), x2=x_axis(high), y2=y_axis(high), class_="diagonal")


def _path(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
