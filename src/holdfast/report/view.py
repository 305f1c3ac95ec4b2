"""What the report's page shows of an audit: which numbers lead, what to do first, what was not measured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup
from pydantic import BaseModel

from holdfast.audit.findings import Action, Chart, Decision, Figure, Finding, Gallery, Metric, Section, Verdict
from holdfast.audit.numbers import bound
from holdfast.report.charts import draw
from holdfast.report.pictures import image
from holdfast.report.svg import element
from holdfast.report.tables import TableView, chart_table, of_table

__all__ = ["Counts", "FigureView", "FindingView", "SectionView", "Step", "anchor", "facts", "limits", "spark", "steps"]

_LEADING = 8  # measures shown before the rest is folded away
_ORDER: dict[Verdict, int] = {"fail": 0, "attention": 1, "not assessed": 2, "pass": 3}


@dataclass(frozen=True)
class Counts:
    """How many findings have which verdict, worst first, leaving out those that none has."""

    items: list[tuple[Verdict, int]]

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> Counts:
        """Count verdicts."""
        found = list(verdicts)
        listed: list[tuple[Verdict, int]] = [(v, found.count(v)) for v in ("fail", "attention", "pass", "not assessed")]
        return cls([(v, n) for v, n in listed if n])

    @property
    def bars(self) -> list[tuple[Verdict, str, str]]:
        """For a bar over the whole width: verdict, start and width in percent."""
        total, start, bars = sum(n for _, n in self.items), 0.0, []
        for verdict, n in self.items:
            bars.append((verdict, f"{start:.2f}", f"{max(100 * n / total - 0.25, 0.1):.2f}"))
            start += 100 * n / total
        return bars

    def __getitem__(self, verdict: Verdict) -> int:
        return dict(self.items).get(verdict, 0)


@dataclass(frozen=True)
class Measure:
    """A metric beside the decision on it, where there is one."""

    metric: Metric
    decision: Decision | None = None

    @property
    def verdict(self) -> Verdict | None:
        """The policy's, where it has a limit."""
        return self.decision.verdict if self.decision is not None and self.decision.pass_at is not None else None

    @property
    def limits(self) -> str:
        """What the policy asks of it: ``at least 90 %, fails below 80 %``."""
        return "" if self.decision is None else limits(self.decision, self.metric)

    @property
    def spark(self) -> Markup:
        """The interval on a scale from 0 to 100 %; empty for what is no rate."""
        return spark(self.metric, self.decision)


@dataclass(frozen=True)
class FigureView:
    """A figure, drawn."""

    type: str
    title: str
    caption: str
    wide: bool = False
    svg: Markup | None = None
    table: TableView | None = None
    groups: list[list[dict[str, str]]] = field(default_factory=list)

    @classmethod
    def of(cls, figure: Figure) -> FigureView:
        """Draw a figure."""
        if isinstance(figure, Chart):
            drawing = draw(figure)
            return cls("chart", figure.title, figure.caption, drawing.wide, drawing.svg, chart_table(figure))
        if isinstance(figure, Gallery):
            groups = [[{"image": image(p), "label": p.label, "note": p.note} for p in g] for g in figure.groups]
            return cls("gallery", figure.title, figure.caption, wide=True, groups=[g for g in groups if g])
        table = of_table(figure)
        wide = len(figure.columns) > 5 or any(len(cell.text) > 40 for row in table.rows for cell in row)
        return cls("table", figure.title, figure.caption, wide, table=table)


@dataclass(frozen=True)
class FindingView:
    """A finding with its measures in order of weight and its figures drawn."""

    finding: Finding
    anchor: str
    metrics: list[Measure]
    more_metrics: list[Measure]
    figures: list[FigureView]
    settings: list[tuple[str, str]]

    @classmethod
    def of(cls, finding: Finding) -> FindingView:
        """The view of a finding: decided measures lead, the others follow in their order."""
        decisions = {d.metric: d for d in finding.decisions}
        measures = [Measure(m, decisions.get(m.name)) for m in finding.metrics]
        measures.sort(key=lambda m: m.decision is None)
        lead = len(measures) if len(measures) <= _LEADING + 2 else max(_LEADING, len(decisions))
        return cls(
            finding,
            anchor(finding.section, finding.check),
            measures[:lead],
            measures[lead:],
            [FigureView.of(figure) for figure in finding.figures],
            facts(finding.settings),
        )

    @property
    def long(self) -> bool:
        """Whether the measures fill the height of two figures beside them."""
        return len(self.metrics) >= 5 and sum(not figure.wide for figure in self.figures) >= 2

    @property
    def known(self) -> list[Measure]:
        """Measures with a value that another run would repeat."""
        return [m for m in self.metrics if m.metric.value is not None and not m.metric.volatile]

    @property
    def headline(self) -> Measure | None:
        """The measure that stands for the finding: the one its verdict came from, else the first."""
        decisive = (m for m in self.known if m.decision is not None and m.decision.verdict == self.finding.verdict)
        return next(decisive, self.known[0] if self.known else None)

    @property
    def key_measures(self) -> list[Measure]:
        """For page one: the check's own first measure, unless it merely passes, and the headline."""
        if self.headline is None:
            return []
        first = {m.name: place for place, m in enumerate(self.finding.metrics)}
        lead = min(self.known, key=lambda m: first[m.metric.name])
        return [self.headline] if lead is self.headline or lead.verdict == "pass" else [lead, self.headline]


@dataclass(frozen=True)
class SectionView:
    """A section with its findings, and how many of them have which verdict."""

    section: Section
    anchor: str
    findings: list[FindingView]
    counts: Counts

    @classmethod
    def of(cls, section: Section, findings: Sequence[Finding]) -> SectionView:
        """The view of a section; `findings` are its own."""
        counts = Counts.of(f.verdict for f in findings)
        return cls(section, anchor(section.id), [FindingView.of(f) for f in findings], counts)

    @property
    def headline(self) -> Measure | None:
        """The measure that stands for the section: that of its first finding with the section's verdict.

        Sound evidence says nothing of the model: there is no number to lead with.
        """
        if self.section.id == "sanity" and self.section.verdict == "pass":
            return None
        of_it = [view for view in self.findings if view.finding.verdict == self.section.verdict]
        return next((view.headline for view in of_it if view.headline is not None), None)

    @property
    def own_reason(self) -> str:
        """The section's reason, unless a finding below says the same."""
        said = {view.finding.reason for view in self.findings}
        return "" if self.section.reason in said else self.section.reason


@dataclass(frozen=True)
class Step:
    """A recommendation on page one, with the finding it comes from."""

    action: Action
    title: str
    reason: str
    verdict: Verdict
    anchor: str


def steps(findings: Iterable[FindingView]) -> list[Step]:
    """The recommendations of failures, then of what needs attention; first ones of every finding before second ones."""
    ranked: list[tuple[tuple[int, int], Step]] = []
    for view in findings:
        if view.finding.verdict in ("fail", "attention"):
            for place, action in enumerate(view.finding.actions or _undirected(view.finding)):
                step = Step(action, view.finding.title, view.finding.reason, view.finding.verdict, view.anchor)
                ranked.append(((_ORDER[step.verdict], place), step))
    ranked.sort(key=lambda pair: pair[0])
    unique: dict[tuple[str, str | None], Step] = {}
    for _, step in ranked:
        unique.setdefault((step.action.text, step.action.command), step)
    return list(unique.values())


def _undirected(finding: Finding) -> list[Action]:
    """A failure for which nothing is recommended must not be missing from page one."""
    text = f"{finding.title}: this fails and no remedy is known here; decide whether it matters for your use."
    return [Action(text=text)] if finding.verdict == "fail" else []


def limits(decision: Decision, metric: Metric | None = None) -> str:
    """The decision's limits in words, in the metric's unit: ``at least 40 %, fails below 10 %``."""
    if decision.pass_at is None:
        return ""
    unit = metric.unit if metric else "value"
    least, below = ("at least", "below") if decision.better == "higher" else ("at most", "above")
    text = f"{least} {bound(decision.pass_at, unit)}"
    if decision.fail_beyond is not None and decision.fail_beyond != decision.pass_at:
        text += f", fails {below} {bound(decision.fail_beyond, unit)}"
    return text


def spark(metric: Metric, decision: Decision | None = None) -> Markup:
    """A rate's value and interval on a line from 0 to 100 %, with a tick at the limit it should reach."""
    if metric.unit != "rate" or metric.value is None or not 0 <= metric.value <= 1:
        return Markup("")
    at = 4 + 84 * metric.value
    parts = [element("line", x1=4, x2=88, y1=6, y2=6)]
    if metric.low is not None and metric.high is not None:
        start = 4 + 84 * max(metric.low, 0.0)
        end = 4 + 84 * min(metric.high, 1.0)
        parts.append(element("rect", x=start, y=3, width=max(end - start, 1.0), height=6, rx=1))
    if decision is not None and decision.pass_at is not None and 0 <= decision.pass_at <= 1:
        limit = 4 + 84 * decision.pass_at
        parts.append(element("line", x1=limit, x2=limit, y1=0, y2=12, class_="limit"))
    parts.append(element("circle", cx=at, cy=6, r=2.6))
    return element("svg", *parts, viewBox="0 0 92 12", width=92, height=12, aria_hidden="true")


def anchor(*names: str) -> str:
    """An id for the page made of `names`: letters, digits and dashes, starting with a letter."""
    return "a-" + "-".join(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in names)


def facts(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Names and values of a record or mapping as text, nested ones flattened to ``outer.inner``."""
    if isinstance(values, BaseModel):
        values = values.model_dump(mode="json", by_alias=True)
    if not isinstance(values, Mapping):
        return [(prefix, _said(values))] if values is not None else []
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        full = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping) and value:
            pairs += facts(value, full)
        else:
            pairs.append((full, _said(value)))
    return pairs


def _said(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case str():
            return value
        case int():
            return str(value)
        case float():
            return f"{value:.6g}"
        case list() | tuple() if all(isinstance(v, str | int | float) for v in value):
            return ", ".join(map(_said, value)) or "none"
        case _:
            return json.dumps(value, ensure_ascii=False, default=str)
