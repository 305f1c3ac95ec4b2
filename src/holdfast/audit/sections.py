"""The axes of safety in the order of the report, after the survey that the taxonomy follows.

Mohseni et al., "Taxonomy of Machine Learning Safety: A Survey and Primer", ACM Computing Surveys 55(8), 2022, judges
strategies against generalisation errors, distributional shift and adversaries; faults, harms to people and the running
of the system are added to these. A section for which there is no check yet says why, so that the gap is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.audit.findings import Finding, Section, Verdict

__all__ = ["AXES", "Axis", "summarise", "worst"]


@dataclass(frozen=True)
class Axis:
    """A section before anything is measured; `missing` says why it has no check, where it has none."""

    id: str
    title: str
    question: str
    missing: str = ""


AXES: tuple[Axis, ...] = (
    Axis("sanity", "Sanity of the evidence", "Can the numbers that follow be trusted at all?"),
    Axis("accuracy", "Accuracy", "How often is it right, on every class, and on data it has not seen?"),
    Axis("calibration", "Uncertainty", "Does its confidence say how often it is right, and when to hold back?"),
    Axis("corruption", "Shift", "Does it keep working when images get worse or come from elsewhere?"),
    Axis("evasion", "Evasion", "Can someone change inputs imperceptibly so that it errs?"),
    Axis(
        "certification",
        "Guarantees",
        "Is there a proof that small changes cannot change its answer?",
        "No certifier is part of this version; attacks only show what was not broken.",
    ),
    Axis("ood", "Unknown inputs", "Does it notice inputs that belong to none of its classes?"),
    Axis(
        "backdoor",
        "Poisoning and backdoors",
        "Was the model or its training data tampered with?",
        "No scanner is part of this version; that nothing was looked for is no sign that nothing is there.",
    ),
    Axis("privacy", "Privacy", "Does it give away who was in its training data?"),
    Axis(
        "unlearning",
        "Erasure",
        "Is data that had to be removed truly forgotten?",
        "No request to forget was given; `holdfast unlearn` serves one and certifies what can be said of it.",
    ),
    Axis("fault", "Faults", "Does it survive errors of the hardware it runs on?"),
    Axis("fairness", "Fairness", "Does it serve all groups of people equally well?"),
    Axis(
        "explanation",
        "Explanation",
        "Does it decide for the right reasons?",
        "No method of explanation is part of this version.",
    ),
    Axis(
        "monitoring",
        "Monitoring",
        "Would a change of the incoming data be noticed?",
        "No drift detector is part of this version.",
    ),
    Axis("efficiency", "Efficiency", "What does it cost to run?"),
)

_BADNESS: dict[Verdict, int] = {"not assessed": 0, "pass": 1, "attention": 2, "fail": 3}


def worst(verdicts: list[Verdict]) -> Verdict:
    """The worst of several verdicts; not assessed when nothing was."""
    return max(verdicts, key=_BADNESS.__getitem__, default="not assessed")


def summarise(axis: Axis, findings: list[Finding]) -> Section:
    """The section of an axis: the worst verdict of its findings, and why."""
    verdict = worst([finding.verdict for finding in findings])
    leading = [finding for finding in findings if finding.verdict == verdict]
    if not leading:
        reason = axis.missing or "No check of it was run."
    elif verdict == "pass" and len(leading) > 1:
        reason = f"All {len(leading)} checks that could be judged pass."
    else:
        reason = leading[0].reason
    if verdict == "pass":
        silent = [finding for finding in findings if finding.verdict == "not assessed"]
        for word, group in (
            ("Not assessed", [finding for finding in silent if not finding.metrics]),
            ("Reported without a limit", [finding for finding in silent if finding.metrics]),
        ):
            if group:
                reason += f" {word}: {', '.join(finding.title.lower() for finding in group)}."
    return Section(id=axis.id, title=axis.title, question=axis.question, verdict=verdict, reason=reason)
