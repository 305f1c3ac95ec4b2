"""`model_card`: an audit as a model card in Markdown, with the metadata header that model hubs read.

The sections are those of Mitchell et al., "Model Cards for Model Reporting", FAT* 2019, arXiv:1810.03993. An audit
knows what a model does, not what it is for: what only its makers can declare is marked as not declared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from holdfast.audit.findings import Finding, Metric, Section
from holdfast.audit.numbers import bound
from holdfast.audit.record import Audit
from holdfast.files import write_text
from holdfast.report.numbers import interval, makeup, shown, title_of, whole

__all__ = ["model_card", "write_model_card"]

_SPECIAL = re.compile(r"([\\`*_\[\]|~$]|^[#+-]|(?<=^\d)[.)])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "://": "&#58;//", "www.": "www&#46;"}
_PEOPLE = ("privacy", "fairness", "unlearning")  # the areas where harm to people shows
_CONDITIONS = ("corruption", "evasion", "ood", "fault")  # the areas that change the conditions of use


def model_card(audit: Audit) -> str:
    """The text of ``MODEL_CARD.md``. Texts from the audit are escaped, so that they stay text."""
    return f"---\n{_header(audit)}---\n\n{_body(audit)}"


def write_model_card(audit: Audit, out: str | os.PathLike[str]) -> Path:
    """Write the card to a file ending in ``.md``, or into a folder as ``MODEL_CARD.md``; return the file.

    Raises:
        UserError: the file cannot be written.
    """
    out = Path(out)
    path = out if out.suffix == ".md" else out / "MODEL_CARD.md"
    write_text(path, model_card(audit))
    return path


def _header(audit: Audit) -> str:
    results = [
        {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {"name": _line(audit.data.name), "type": _slug(audit.data.name), "split": "test"},
            "metrics": [
                {
                    "type": _slug(metric.name),
                    "name": _line(title_of(metric)),
                    "value": float(f"{metric.value:.6g}"),
                    "verified": False,
                }
                for _, metric in _lasting(audit.findings)
                if metric.value is not None
            ],
        }
    ]
    metadata: dict[str, Any] = {
        "license": "unknown",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "safety-audit", "holdfast"],
        "datasets": [_slug(audit.data.name)],
        "metrics": sorted({_slug(metric.name.partition("/")[0]) for _, metric in _lasting(audit.findings)}),
        "model-index": [{"name": _line(audit.model.name), "results": results}],
    }
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=120)


def _body(audit: Audit) -> str:
    parts = [
        f"# Model card: {_text(audit.model.name)}",
        f"Made by holdfast {_text(audit.environment.holdfast)} from audit `{_code(audit.fingerprint)}` of "
        f"{_text(audit.created[:10])}, profile {_text(str(audit.profile.get('name', 'custom')))}. "
        "The card gives evidence; it does not declare conformity with any law or standard.",
        "## Model details",
        _list(
            f"Architecture: {_text(makeup(audit.model))}",
            f"Input: images of {' × '.join(map(str, audit.data.shape))} (channels, height, width), values in 0 to 1",
            f"Output: {len(audit.data.classes)} classes: {', '.join(_text(name) for name in audit.data.classes)}",
            f"Weights: `{_code(audit.model.weights)}`",
            "Developers, date, licence and contact: not declared",
        ),
        "## Intended use",
        "Intended uses, intended users and uses out of scope: not declared.",
        "## Factors",
        _factors(audit),
        "## Metrics",
        f"Limits and verdicts are those of the policy {_text(audit.policy.name)} {_text(audit.policy.version)} of "
        f"{_text(audit.policy.dated)}. Verdicts go by the unfavourable end of the 95 % interval. {_threat(audit)}",
        _limits(audit),
        "## Evaluation data",
        _data(audit, "test"),
        "## Training data",
        _data(audit, "train"),
        "## Quantitative analyses",
        _analyses(audit),
        "## Ethical considerations",
        _areas(audit, _PEOPLE),
        "Risks and harms in the intended use, and the steps taken against them: not declared.",
        "## Caveats and recommendations",
        _caveats(audit),
        "## To repeat the audit",
        f"```sh\n{_fenced(audit.command)}\n```" if audit.command else "The command was not recorded.",
    ]
    return "\n\n".join(parts) + "\n"


def _factors(audit: Audit) -> str:
    groups = [f for f in audit.findings if f.section == "fairness" and f.verdict != "not assessed"]
    about = "Groups: " + (", ".join(_text(f.title) for f in groups) if groups else "none were examined.")
    return _list(f"Classes: {len(audit.data.classes)}", about) + "\n\n" + _areas(audit, _CONDITIONS)


def _areas(audit: Audit, ids: Iterable[str]) -> str:
    sections = [section for section in audit.sections if section.id in ids]
    return _list(*(f"{_text(s.title)}: **{s.verdict}**. {_text(s.reason)}" for s in sections))


def _threat(audit: Audit) -> str:
    threat = audit.policy.threat
    if not threat.adversary:
        return "No adversary is expected."
    return f"An adversary is expected who changes pixels by up to {255 * threat.eps:.3g}/255."


def _limits(audit: Audit) -> str:
    rows = []
    for finding in audit.findings:
        metrics = {metric.name: metric for metric in finding.metrics}
        for decision in finding.decisions:
            if decision.pass_at is not None and decision.metric in metrics:
                metric = metrics[decision.metric]
                sign = "≥" if decision.better == "higher" else "≤"
                limit = f"{sign} {bound(decision.pass_at, metric.unit)}"
                rows.append([_text(finding.title), _text(title_of(metric)), limit, _text(decision.source)])
    return _table(["Finding", "Measure", "Passes at", "Source of the limit"], rows)


def _data(audit: Audit, split: str) -> str:
    size, used = audit.data.sizes.get(split), audit.data.used.get(split)
    if size is None:
        return "Not given to the audit."
    about = f"{_text(audit.data.name)}, split {split}: {whole(size)} images, of which {whole(used or 0)} were used."
    return f"{about} Fingerprint of all data: `{_code(audit.data.fingerprint)}`."


def _analyses(audit: Audit) -> str:
    rows = [
        [
            _text(finding.title),
            _text(title_of(metric)),
            shown(metric),
            interval(metric) or "–",
            whole(metric.n) if metric.n is not None else "–",
            _verdict(finding, metric),
        ]
        for finding, metric in _lasting(audit.findings)
    ]
    return _table(["Finding", "Measure", "Value", "95 % interval", "n", "Verdict"], rows)


def _caveats(audit: Audit) -> str:
    blocks = []
    for verdict, head in (("fail", "Failed"), ("attention", "Needs attention")):
        lines = []
        for finding in audit.findings:
            if finding.verdict == verdict:
                advice = " ".join(_text(action.text) for action in finding.actions)
                lines.append(f"{_text(finding.title)}: {_text(finding.reason)} {advice}".rstrip())
        blocks.append(f"**{head}**\n\n{_list(*lines) if lines else 'None.'}")
    missing = [_gap(s) for s in audit.sections if s.verdict == "not assessed"]
    blocks.append(f"**Not assessed** (this is not a pass)\n\n{_list(*missing) if missing else 'None.'}")
    limitations = dict.fromkeys(text for finding in audit.findings for text in finding.limitations)
    if limitations:
        blocks.append(f"**Limitations**\n\n{_list(*map(_text, limitations))}")
    return "\n\n".join(blocks)


def _gap(section: Section) -> str:
    return f"{_text(section.title)}: {_text(section.question)} {_text(section.reason)}".rstrip()


def _verdict(finding: Finding, metric: Metric) -> str:
    return next((d.verdict for d in finding.decisions if d.metric == metric.name and d.pass_at is not None), "–")


def _lasting(findings: Iterable[Finding]) -> list[tuple[Finding, Metric]]:
    """The measures that another run would repeat."""
    return [(f, m) for f in findings for m in f.metrics if not m.volatile and m.value is not None]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "None."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(*items: str) -> str:
    return "\n".join(f"- {item}" for item in items)


def _text(value: str) -> str:
    """`value` on one line, with all that Markdown or HTML would read as markup escaped."""
    line = _SPECIAL.sub(r"\\\1", _line(value))
    for mark, entity in _ENTITIES.items():
        line = line.replace(mark, entity)
    return line


def _line(value: str) -> str:
    """`value` on one line: a line of dashes would end the header, an empty one a table."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _code(value: str) -> str:
    """`value` for a code span, where a backtick would end it."""
    return " ".join(value.replace("`", "'").split())


def _fenced(value: str) -> str:
    return " ".join(value.split()).replace("```", "'''")


def _slug(value: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-") or "unknown"
