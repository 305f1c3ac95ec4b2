"""Cells as they are shown and as they are sorted, for the tables of findings, of charts and of the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.audit.findings import Chart, Table
from holdfast.report.numbers import aligned, percent, short, whole

__all__ = ["Cell", "Column", "TableView", "chart_table", "table_view"]

_MANY = 400  # charts of more numbers than this do not list them

Value = str | float | int | None


@dataclass(frozen=True)
class Cell:
    """A cell's text, the number it sorts by (None sorts by the text), and whether it is set as a number."""

    text: str
    key: float | None = None
    numeric: bool = False


@dataclass(frozen=True)
class Column:
    """A column's head; numbers are set flush right."""

    name: str
    numeric: bool


@dataclass(frozen=True)
class TableView:
    """A table ready for the page."""

    title: str
    columns: list[Column]
    rows: list[list[Cell]]


def table_view(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Value]], percent_of: Sequence[str]
) -> TableView:
    """The table with formatted cells; a column is numeric when all that it holds are numbers."""
    filled = [list((*row, *[None] * len(columns))[: len(columns)]) for row in rows]
    shown = [_column([row[i] for row in filled], name in percent_of) for i, name in enumerate(columns)]
    heads = [Column(name, any(cell.numeric for cell in cells)) for name, cells in zip(columns, shown, strict=True)]
    return TableView(title, heads, [list(cells) for cells in zip(*shown, strict=True)])


def of_table(table: Table) -> TableView:
    """The view of a finding's table."""
    view = table_view(table.title, table.columns, table.rows, table.percent)
    return TableView(view.title, [Column(c.name[:1].upper() + c.name[1:], c.numeric) for c in view.columns], view.rows)


def chart_table(chart: Chart) -> TableView | None:
    """The numbers behind a chart, one column per series; None when there are too many to read."""
    if sum(len(series.y) for series in chart.series) > _MANY or not chart.series:
        return None
    if chart.kind == "scatter" or any(len(series.x) != len(series.y) for series in chart.series):
        return None
    places = list(dict.fromkeys(x for series in chart.series for x in series.x))
    found: list[Mapping[object, float | None]] = [dict(zip(s.x, s.y, strict=True)) for s in chart.series]
    if chart.kind == "heatmap":  # rows as they are drawn
        rows: list[list[Value]] = [
            [s.name, *(f.get(x) for x in places)] for s, f in zip(chart.series, found, strict=True)
        ]
        return table_view(chart.title, [chart.y_label or "", *map(_text, places)], rows, ())
    names = [series.name or chart.y_label for series in chart.series]
    return table_view(chart.title, [chart.x_label, *names], [[x, *(f.get(x) for f in found)] for x in places], ())


def _column(values: list[Value], rate: bool) -> list[Cell]:
    """The cells of one column; where all that it holds are numbers, with equal decimals."""
    numbers = [v for v in values if _is_number(v)]
    numeric = bool(numbers) and all(v is None or _is_number(v) for v in values)
    known = [float(v) if _is_number(v) and v is not None else None for v in values]
    if rate:
        texts = ["" if v is None else percent(v) for v in known]
    elif all(isinstance(v, int) for v in numbers):
        texts = ["" if v is None else whole(v) for v in known]
    else:
        texts = aligned(known)
    return [_cell(v, key, text, numeric) for v, key, text in zip(values, known, texts, strict=True)]


def _cell(value: Value, key: float | None, text: str, numeric: bool) -> Cell:
    if value is None:
        return Cell("–" if numeric else "", None, numeric)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    return Cell(value) if isinstance(value, str) else Cell(text, key, numeric)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Value) -> str:
    return value if isinstance(value, str) else short(value)
