"""`write_report`: an audit as one self-contained HTML file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from holdfast.audit.findings import Finding, Verdict
from holdfast.audit.numbers import bound
from holdfast.audit.record import Audit
from holdfast.audit.sections import worst
from holdfast.report.numbers import duration, makeup, shown, whole
from holdfast.report.pages import write_page
from holdfast.report.tables import TableView, table_view
from holdfast.report.view import Counts, Measure, SectionView, Step, facts, steps

__all__ = ["write_report"]

_STEPS = 6  # recommendations on page one; the others stand with their findings
_MANY = 20  # from this many verdicts on, the reader is told that some err by chance


def write_report(audit: Audit, out: str | os.PathLike[str]) -> Path:
    """Write the report of an audit.

    Args:
        audit: what to show. Its texts and pictures are treated as untrusted.
        out: a file ending in ``.html``, or a folder, in which it is named ``report.html``.

    Returns:
        The file written.

    Raises:
        UserError: the file cannot be written.
    """
    out = Path(out)
    path = out if out.suffix == ".html" else out / "report.html"
    return write_page(path, "report.html.j2", view=_ReportView(audit))


@dataclass(frozen=True)
class _KeyNumber:
    measure: Measure
    title: str
    anchor: str
    verdict: Verdict | None


class _ReportView:
    """What the template asks for."""

    def __init__(self, audit: Audit):
        self.audit = audit
        found: dict[str, list[Finding]] = {}
        for finding in audit.findings:
            found.setdefault(finding.section, []).append(finding)
        self.all_sections = [SectionView.of(section, found.get(section.id, [])) for section in audit.sections]
        self.sections = [section for section in self.all_sections if section.findings]
        self.unassessed = [section for section in self.all_sections if not section.findings]
        self.findings = [finding for section in self.sections for finding in section.findings]
        self.counts = Counts.of(finding.verdict for finding in audit.findings)
        self.verdict = worst([finding.verdict for finding in audit.findings])
        advice = steps(self.findings)
        self.steps: list[Step] = advice[:_STEPS]
        self.more_steps = len(advice) - len(self.steps)

    @property
    def statement(self) -> str:
        """The outcome in two sentences."""
        counts, total = self.counts, len(self.findings)
        if not total:
            return "Nothing was assessed."
        bad = _listed((counts["fail"], "fails", "fail"), (counts["attention"], "needs attention", "need attention"))
        rest = _listed(
            (counts["pass"], "passes", "pass"), (counts["not assessed"], "was not judged", "were not judged")
        )
        text = f"Of {total} findings, {bad}" if bad else f"None of {total} findings fails or needs attention"
        gap = len(self.unassessed)
        areas = f" {gap} {'area was' if gap == 1 else 'areas were'} not assessed at all." if gap else ""
        return f"{text}; {rest}.{areas}" if rest else f"{text}.{areas}"

    @property
    def lede(self) -> list[tuple[str, str]]:
        """The facts under the title."""
        audit, data = self.audit, self.audit.data
        threat = audit.policy.threat
        against = f"changes up to {bound(threat.eps * 255, 'value')}/255" if threat.adversary else "no adversary"
        return [
            ("Model", makeup(audit.model)),
            ("Data", f"{data.name}, {whole(data.used.get('test', 0))} test images, {len(data.classes)} classes"),
            ("Threat model", against),
            ("Profile", str(audit.profile.get("name", "custom"))),
            ("Policy", f"{audit.policy.name} {audit.policy.version}, {audit.policy.dated}"),
            ("Weights", audit.model.weights[:16]),
            ("Audit", audit.fingerprint),
            ("Date", audit.created.replace("T", " ").replace("+00:00", " UTC")),
        ]

    @property
    def key_numbers(self) -> list[_KeyNumber]:
        """The leading measures of every finding; of the evidence's soundness, only what is amiss."""
        return [
            _KeyNumber(measure, view.finding.title, view.anchor, measure.verdict)
            for view in self.findings
            for measure in view.key_measures
            if view.finding.section != "sanity" or measure.verdict != "pass"
        ]

    @property
    def gaps(self) -> list[tuple[str, str]]:
        """What was not assessed, areas first, with the reason."""
        areas = [(section.section.title, section.section.reason) for section in self.unassessed]
        unjudged = [v.finding for v in self.findings if v.finding.verdict == "not assessed"]
        return areas + [(finding.title, finding.reason) for finding in unjudged]

    @property
    def caution(self) -> str:
        """What holds for all numbers."""
        data = self.audit.data
        text = f"All numbers are of {whole(data.used.get('test', 0))} images of {data.name} or fewer; "
        text += "they say nothing of data that differ from these in ways not tested here."
        verdicts = sum(len(view.finding.decisions) for view in self.findings)
        if verdicts > _MANY:
            text += f" With {verdicts} measures judged, some verdicts will be wrong by chance."
        return text

    @property
    def policy_facts(self) -> list[tuple[str, str]]:
        """Name, version and threat model of the policy."""
        policy = self.audit.policy
        pairs = [("Name", policy.name), ("Version", policy.version), ("Dated", policy.dated)]
        if policy.reason:
            pairs.append(("Why it differs from the default", policy.reason))
        threat = policy.threat
        return [
            *pairs,
            ("Adversary expected", "yes" if threat.adversary else "no"),
            ("Attack size", f"{threat.eps:.4g}"),
        ]

    @property
    def policy_table(self) -> TableView | None:
        """Every limit, what was measured against it, and its source."""
        rows: list[list[str | float | int | None]] = []
        findings = {view.finding.check: view.finding for view in self.findings}
        for check, rules in self.audit.policy.rules.items():
            finding = findings.get(check)
            metrics = {m.name: m for m in finding.metrics} if finding else {}
            verdicts = {d.metric: d.verdict for d in finding.decisions} if finding else {}
            for name, rule in rules.items():
                metric = metrics.get(name)
                unit = metric.unit if metric else "value"
                sign = "≥" if rule.better == "higher" else "≤"
                beyond = "<" if rule.better == "higher" else ">"
                limit = rule.pass_at if rule.fail_beyond is None else rule.fail_beyond
                rows.append(
                    [
                        finding.title if finding else check.replace("-", " ").capitalize(),
                        (metric.title if metric and metric.title else name.replace("-", " ")),
                        "report only" if rule.pass_at is None else _firm(f"{sign} {bound(rule.pass_at, unit)}"),
                        "" if limit is None or rule.severity == "minor" else _firm(f"{beyond} {bound(limit, unit)}"),
                        shown(metric) if metric else "–",
                        verdicts.get(name, "not assessed"),
                        rule.source,
                    ]
                )
        columns = ["Finding", "Measure", "Passes", "Fails", "Measured", "Verdict", "Source of the limits"]
        return table_view("Limits of the policy", columns, rows, ()) if rows else None

    @property
    def provenance(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Model, data, environment and profile in full."""
        audit, data = self.audit, self.audit.data
        seen = [(f"Images, {k}", _of(data.used.get(k), n)) for k, n in data.sizes.items()]
        about = [
            ("Name", data.name),
            ("Fingerprint", data.fingerprint),
            ("Shape", " × ".join(map(str, data.shape))),
            *seen,
            ("Classes", ", ".join(data.classes)),
        ]
        run = [
            ("Created", audit.created),
            ("Wall time", duration(audit.seconds)),
            ("Fingerprint", audit.fingerprint),
            ("Rows in samples.parquet", whole(audit.samples_info.rows)),
            ("SHA-256 of the samples", audit.samples_info.sha256),
        ]
        return [
            ("Model", facts(audit.model)),
            ("Data", about),
            ("Environment", facts(audit.environment)),
            ("Audit", run),
            ("Profile", facts(audit.profile)),
        ]


def _listed(*counts: tuple[int, str, str]) -> str:
    return " and ".join(f"{n} {one if n == 1 else many}" for n, one, many in counts if n)


def _of(used: int | None, given: int) -> str:
    return whole(given) if used is None or used == given else f"{whole(used)} of {whole(given)}"


def _firm(text: str) -> str:
    return text.replace(" ", "\u00a0")
