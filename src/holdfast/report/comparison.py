"""`write_comparison`: a `Comparison` as one self-contained HTML file, like the report of one audit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from holdfast.audit.findings import Metric, Verdict
from holdfast.report.compare import Comparison, Row, SharedMetric, chance
from holdfast.report.differences import Difference, Outcome
from holdfast.report.numbers import SPACE, changed, interval, shown, span, title_of
from holdfast.report.pages import write_page
from holdfast.report.svg import element, title
from holdfast.report.view import anchor

__all__ = ["write_comparison"]

_ORDER: dict[Verdict, int] = {"pass": 0, "attention": 1, "fail": 2}


def write_comparison(comparison: Comparison, out: str | os.PathLike[str]) -> Path:
    """Write the page of a comparison.

    Args:
        comparison: from `compare`. Its texts are treated as untrusted.
        out: a file ending in ``.html``, or a folder, in which it is named ``compare.html``.

    Returns:
        The file written.

    Raises:
        UserError: the file cannot be written.
    """
    out = Path(out)
    path = out if out.suffix == ".html" else out / "compare.html"
    return write_page(path, "compare.html.j2", view=_ComparisonView(comparison))


@dataclass(frozen=True)
class _Cell:
    """An audit's value of a metric, and its difference from the first audit's where it has one."""

    metric: Metric | None
    difference: Difference | None

    @property
    def value(self) -> str:
        return shown(self.metric) if self.metric is not None else "–"

    @property
    def interval(self) -> str:
        return interval(self.metric) if self.metric is not None else ""

    @property
    def key(self) -> float | None:
        return self.metric.value if self.metric is not None else None

    @property
    def change(self) -> str:
        """The difference for people; empty for the first audit and where the values are equal."""
        if self.difference is None or self.difference.value is None or self.metric is None:
            return ""
        return changed(self.difference.value, self.metric) if self.difference.value else ""

    @property
    def test(self) -> str:
        """How the difference was tested, with the p-value or the interval of the difference."""
        found = self.difference
        if found is None or not found.value or self.metric is None or found.test == "none":
            return ""
        if found.p is not None:
            return f"{found.test}, p{SPACE}{'<' if found.p < 0.001 else '='}{SPACE}{max(found.p, 0.001):.3f}"
        if found.low is not None and found.high is not None:
            unit = "points" if self.metric.unit == "rate" else self.metric.unit
            return f"{found.test}, {span(found.low, found.high, unit, self.metric.n)}"
        return found.test

    @property
    def outcome(self) -> Outcome | None:
        return self.difference.outcome if self.difference is not None else None


@dataclass(frozen=True)
class _Line:
    """A metric across the audits."""

    finding: str
    title: str
    anchor: str
    cells: list[_Cell]
    plot: Markup


class _ComparisonView:
    """What the template asks for."""

    def __init__(self, comparison: Comparison):
        self.comparison = comparison
        self.names = comparison.names
        self.lines = [_line(metric, self.names) for metric in comparison.metrics]
        self.chance = chance(comparison)

    @property
    def statement(self) -> str:
        """What changed for each audit, in a sentence each."""
        return " ".join(self._told(name) for name in self.names[1:])

    def _told(self, name: str) -> str:
        counts = {o: len(self.comparison.having(o, name)) for o in _REAL}
        told = [f"{o} in {n} measure{'s' if n != 1 else ''}" for o, n in counts.items() if n]
        if not told:
            return f"{name} does not differ from {self.names[0]} by more than chance in any measure."
        return f"{name}, against {self.names[0]}, is {', '.join(told)}."

    def moves(self, row: Row) -> list[str]:
        """For each audit after the first, whether its verdict is better or worse than the first's; empty otherwise."""
        first, found = row.verdicts[0], []
        for verdict in row.verdicts[1:]:
            if first not in _ORDER or verdict not in _ORDER or verdict == first:
                found.append("")
            else:
                found.append("better" if _ORDER[verdict] < _ORDER[first] else "worse")
        return ["", *found]

    def changes(self, name: str, outcome: Outcome) -> list[_Line]:
        """The metrics of which audit `name` differs from the first in this way."""
        place = self.names.index(name)
        return [line for line in self.lines if line.cells[place].outcome == outcome]


_REAL: tuple[Outcome, ...] = ("worse", "better", "changed")


def _line(shared: SharedMetric, names: list[str]) -> _Line:
    differences: list[Difference | None] = [None, *shared.differences]
    cells = [_Cell(metric, found) for metric, found in zip(shared.metrics, differences, strict=True)]
    name = anchor("m", shared.section, shared.check, shared.any.name)
    return _Line(shared.finding, title_of(shared.any), name, cells, _plot(shared.metrics, names))


def _plot(metrics: list[Metric | None], names: list[str]) -> Markup:
    """The audits' values and intervals above each other on one line, from the lowest to the highest of them."""
    known = [v for m in metrics if m is not None for v in (m.value, m.low, m.high) if v is not None]
    if len(known) < 2 or min(known) == max(known):
        return Markup("")
    low, span = min(known), max(known) - min(known)
    rows = []
    for i, (metric, name) in enumerate(zip(metrics, names, strict=True)):
        if metric is None or metric.value is None:
            continue
        y = 6 + 9 * i
        parts = []
        if metric.low is not None and metric.high is not None:
            ends = [8 + 124 * (v - low) / span for v in (metric.low, metric.high)]
            parts.append(element("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_="reach"))
        at = 8 + 124 * (metric.value - low) / span
        parts.append(element("circle", title(f"{name}: {shown(metric)}"), cx=at, cy=y, r=3.2, class_="mark"))
        rows.append(element("g", *parts, class_=f"s{i % 8}"))
    height = 3 + 9 * len(metrics)
    return element(
        "svg", *rows, viewBox=f"0 0 140 {height}", width=140, height=height, class_="plot", aria_hidden="true"
    )
