"""Whether abstaining on the least sure images avoids errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Chart, Metric, Series, Table
from holdfast.audit.subject import Subject
from holdfast.calibration import selective_risk
from holdfast.errors import UserError

__all__ = ["SelectivePrediction"]


@dataclass(frozen=True, kw_only=True)
class SelectivePrediction(Check):
    """Risk over coverage, when only the most confident predictions are answered.

    Args:
        coverage: the share answered that makes the verdict.
    """

    id = "selective-prediction"
    section = "calibration"
    title = "Selective prediction"
    question = "Does holding back when unsure avoid errors?"
    needs = ("scores",)

    coverage: float = 0.8

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        seen = subject.predictions("test")
        errors = int((~seen.correct).sum())
        if not errors:
            raise UserError(f"The model made no error on {len(seen)} images, so there is none to avoid.")
        coverages, risks = stats.risk_coverage(seen.confidence, seen.correct)
        kept = selective_risk(seen.confidence, seen.correct, self.coverage)
        risk = errors / len(seen)
        # The ratio of risks is the share of the errors that are kept, over the coverage: a rate among the errors.
        answered = max(1, int(np.ceil(self.coverage * len(seen) - 1e-9)))
        low, high = stats.wilson(min(errors, round(kept * answered)), errors)
        scale = len(seen) / answered
        rng = subject.run.numpy_rng("selective-prediction")
        rows = np.stack([seen.confidence, seen.correct], 1)
        area = stats.bootstrap(
            lambda r: stats.aurc(r[:, 0], r[:, 1]), rows, rng=rng, resamples=min(200, subject.profile.resamples)
        )
        return Answer(
            metrics=[
                Metric(
                    name="selective-ratio",
                    value=kept / risk,
                    low=low * scale,
                    high=high * scale,
                    n=errors,
                    better="lower",
                    title=f"Error at {self.coverage:.0%} coverage over error at full coverage",
                ),
                Metric(
                    name="selective-risk",
                    value=kept,
                    n=answered,
                    unit="rate",
                    better="lower",
                    title=f"Error at {self.coverage:.0%} coverage",
                ),
                Metric(
                    name="aurc",
                    value=float(risks.mean()),
                    low=area[0],
                    high=area[1],
                    n=len(seen),
                    better="lower",
                    title="Area under risk over coverage",
                ),
            ],
            figures=[_curve(coverages, risks), _table(seen.confidence, coverages, risks)],
            remedies=[
                Remedy(
                    Action(
                        text="Rank by another score: the largest logit or the energy often separates errors better "
                        "than the softmax.",
                        method="energy",
                        command="holdfast show energy",
                    ),
                    when="selective-ratio",
                )
            ],
            settings={"score": "largest softmax probability", "coverage": self.coverage, "errors": errors},
            limitations=["Thresholds in the table are read off this test set; choose yours on held-out data."],
        )


def _curve(coverages: np.ndarray, risks: np.ndarray) -> Chart:
    which = np.unique(np.linspace(0, len(risks) - 1, 200).astype(int))
    which = which[coverages[which] >= 0.05]  # below, single images make the curve jump
    return Chart(
        kind="line",
        title="Risk over coverage",
        x_label="share answered",
        y_label="error rate",
        series=[Series(name="error rate", x=coverages[which].tolist(), y=risks[which].tolist())],
        level=float(risks[-1]),
        level_label="all answered",
    )


def _table(confidence: np.ndarray, coverages: np.ndarray, risks: np.ndarray) -> Table:
    rows: list[list[str | float | int | None]] = []
    order = np.sort(confidence)[::-1]
    for share in (1.0, 0.95, 0.9, 0.8, 0.7, 0.5):
        place = max(1, int(np.ceil(share * len(risks) - 1e-9))) - 1
        rows.append([float(coverages[place]), float(risks[place]), float(order[place])])
    return Table(
        title="What holding back buys",
        columns=["answered", "error rate", "confidence from"],
        rows=rows,
        percent=["answered", "error rate", "confidence from"],
    )
