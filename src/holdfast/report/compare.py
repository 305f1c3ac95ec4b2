"""`compare`: several audits side by side, and which of their differences are more than chance.

The first audit is the reference. How a difference is tested stands in `differences`; each says which test it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from holdfast.audit.findings import SCHEMA_VERSION, Finding, Metric, Verdict
from holdfast.audit.record import Audit
from holdfast.errors import UserError
from holdfast.report.differences import LEVEL, Difference, Measured, Outcome, difference, outcomes_of
from holdfast.report.numbers import changed, shown, title_of

__all__ = ["Comparison", "Participant", "Row", "SharedMetric", "chance", "compare"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Participant(_Record):
    """One of the audits."""

    name: str
    audit: str = Field(description="the audit's own name")
    fingerprint: str
    model: str
    weights: str
    data: str
    data_fingerprint: str
    profile: str
    created: str


class Row(_Record):
    """A section or finding, with the verdict of each audit; None where an audit lacks it."""

    id: str
    title: str
    verdicts: list[Verdict | None]


class SharedMetric(_Record):
    """A metric that at least two audits have."""

    section: str
    check: str
    finding: str
    metrics: list[Metric | None] = Field(description="one for each audit")
    differences: list[Difference] = Field(description="one for each audit after the first")

    @property
    def any(self) -> Metric:
        """The metric of the first audit that has it, for name, unit and direction."""
        return next(metric for metric in self.metrics if metric is not None)


class Comparison(_Record):
    """Audits side by side; differences are to the first."""

    schema_version: str = SCHEMA_VERSION
    audits: list[Participant]
    warnings: list[str]
    sections: list[Row]
    findings: list[Row]
    metrics: list[SharedMetric]

    @property
    def names(self) -> list[str]:
        """The audits' names, in order."""
        return [audit.name for audit in self.audits]

    @property
    def tested(self) -> int:
        """How many differences were tested."""
        tests = [d.test for metric in self.metrics for d in metric.differences]
        return sum(test not in ("exact", "none") for test in tests)

    def having(self, outcome: Outcome, name: str) -> list[tuple[SharedMetric, Difference]]:
        """The metrics of which audit `name` differs from the first in this way."""
        return [(m, d) for m in self.metrics for d in m.differences if d.name == name and d.outcome == outcome]

    def to_text(self) -> str:
        """The comparison for a terminal: warnings, verdicts, and what got better and worse."""
        lines = [f"Compared with {self.names[0]}: {', '.join(self.names[1:])}", ""]
        lines += [f"Warning: {warning}" for warning in self.warnings] + ([""] if self.warnings else [])
        width = max(len(row.title) for row in self.sections) if self.sections else 0
        columns = [max(len(name), 12) for name in self.names]
        lines.append(" " * width + "  " + "  ".join(n.ljust(w) for n, w in zip(self.names, columns, strict=True)))
        for row in self.sections:
            verdicts = (str(v or "–").ljust(w) for v, w in zip(row.verdicts, columns, strict=True))
            lines.append(f"{row.title.ljust(width)}  {'  '.join(verdicts)}")
        outcomes: tuple[Outcome, ...] = ("worse", "better", "changed")
        for name in self.names[1:]:
            for outcome in outcomes:
                found = self.having(outcome, name)
                lines += ["", f"{name}: {len(found)} {outcome}"] if found else []
                lines += [f"  {_line(metric, difference, self.names)}" for metric, difference in found]
        lines += ["", chance(self)]
        return "\n".join(line.rstrip() for line in lines)


def compare(audits: Sequence[Audit], names: Sequence[str] | None = None) -> Comparison:
    """Hold audits against the first of them.

    Args:
        audits: two or more. Those that were read with their samples can be paired image by image.
        names: short ones for the columns; the audits' own when absent. Equal names are numbered.

    Raises:
        UserError: there are fewer than two audits, the names do not fit, or versions of ``audit.json`` are mixed.
    """
    if len(audits) < 2:
        raise UserError(f"compare takes two or more audits, got {len(audits)}.")
    if names is not None and len(names) != len(audits):
        raise UserError(f"compare: {len(audits)} audits need as many names, got {len(names)}.")
    called = _distinct(list(names) if names is not None else [audit.name for audit in audits])
    majors = [audit.schema_version.partition(".")[0] for audit in audits]
    for name, audit, major in zip(called, audits, majors, strict=True):
        if major != majors[0]:
            raise UserError(
                f"{called[0]} has schema version {audits[0].schema_version} and {name} {audit.schema_version}, whose "
                "numbers do not mean the same; audit both with one version of holdfast."
            )
    return Comparison(
        audits=[_participant(name, audit) for name, audit in zip(called, audits, strict=True)],
        warnings=_warnings(called, audits),
        sections=_sections(audits),
        findings=_findings(audits),
        metrics=_metrics(called, audits),
    )


def chance(comparison: Comparison) -> str:
    """What to make of many tests."""
    return (
        f"{comparison.tested} differences were tested at 5 %: were all of them chance, about "
        f"{max(1, round(LEVEL * comparison.tested))} would still look real."
    )


def _participant(name: str, audit: Audit) -> Participant:
    return Participant(
        name=name,
        audit=audit.name,
        fingerprint=audit.fingerprint,
        model=audit.model.name,
        weights=audit.model.weights,
        data=audit.data.name,
        data_fingerprint=audit.data.fingerprint,
        profile=str(audit.profile.get("name", "custom")),
        created=audit.created,
    )


def _warnings(names: list[str], audits: Sequence[Audit]) -> list[str]:
    """Whatever makes the numbers less comparable than they look."""
    found = []
    first = audits[0]
    for name, audit in zip(names[1:], audits[1:], strict=True):
        both = f"{names[0]} and {name}"
        if audit.fingerprint and audit.fingerprint == first.fingerprint:
            found.append(f"{both} are the same audit.")
        if audit.data.fingerprint != first.data.fingerprint:
            found.append(
                f"{both} were audited on different data ({first.data.name}, {audit.data.name}): what differs may be "
                "the data, not the model."
            )
        if audit.profile != first.profile:
            found.append(f"{both} were audited with different profiles: sample counts and attack budgets differ.")
        if audit.policy != first.policy:
            found.append(f"{both} were judged by different policies: compare numbers, not verdicts.")
        if audit.environment.code != first.environment.code:
            found.append(f"{both} were audited by different versions of holdfast.")
        for finding in audit.findings:
            before = _finding(first, finding)
            if before is not None and before.settings != finding.settings and audit.profile == first.profile:
                changed = [
                    k
                    for k in before.settings.keys() | finding.settings.keys()
                    if before.settings.get(k) != finding.settings.get(k)
                ]
                found.append(f"{finding.title}: the settings differ in {', '.join(sorted(changed))}.")
    return list(dict.fromkeys(found))


def _sections(audits: Sequence[Audit]) -> list[Row]:
    titles = {section.id: section.title for audit in reversed(audits) for section in audit.sections}
    order = list(dict.fromkeys(section.id for audit in audits for section in audit.sections))
    verdicts = [{section.id: section.verdict for section in audit.sections} for audit in audits]
    return [Row(id=id, title=titles[id], verdicts=[of.get(id) for of in verdicts]) for id in order]


def _findings(audits: Sequence[Audit]) -> list[Row]:
    titles = {(f.section, f.check): f.title for audit in reversed(audits) for f in audit.findings}
    order = list(dict.fromkeys((f.section, f.check) for audit in audits for f in audit.findings))
    verdicts: list[dict[tuple[str, str], Verdict]] = [
        {(f.section, f.check): f.verdict for f in a.findings} for a in audits
    ]
    return [Row(id=key[1], title=titles[key], verdicts=[of.get(key) for of in verdicts]) for key in order]


def _metrics(names: list[str], audits: Sequence[Audit]) -> list[SharedMetric]:
    order: dict[tuple[str, str, str], str] = {}
    tables: list[dict[tuple[str, str, str], Measured]] = []
    for audit in audits:
        outcomes, table = outcomes_of(audit), {}
        for finding in audit.findings:
            for metric in finding.metrics:
                key = (finding.section, finding.check, metric.name)
                table[key] = Measured(metric, finding.check, outcomes, audit.data.fingerprint)
                order.setdefault(key, finding.title)
        tables.append(table)
    shared = []
    for key, title in order.items():
        first, *others = (table.get(key) for table in tables)
        if sum(measured is not None for measured in (first, *others)) < 2:
            continue
        differences = [
            Difference(name=name, value=None, test="none", outcome="not tested")
            if first is None or other is None
            else difference(name, first, other)
            for name, other in zip(names[1:], others, strict=True)
        ]
        metrics = [None if measured is None else measured.metric for measured in (first, *others)]
        found = SharedMetric(section=key[0], check=key[1], finding=title, metrics=metrics, differences=differences)
        shared.append(found)
    return shared


def _finding(audit: Audit, like: Finding) -> Finding | None:
    return next((f for f in audit.findings if (f.section, f.check) == (like.section, like.check)), None)


def _distinct(names: list[str]) -> list[str]:
    """The names, numbered from the second time they occur."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _line(metric: SharedMetric, difference: Difference, names: list[str]) -> str:
    place = names.index(difference.name)
    before, after = metric.metrics[0], metric.metrics[place]
    if before is None or after is None or difference.value is None:
        return metric.finding
    p = f", p = {difference.p:.2g}" if difference.p is not None else ""
    change = changed(difference.value, after)
    return f"{metric.finding}, {title_of(after)}: {shown(before)} to {shown(after)} ({change}; {difference.test}{p})"
