"""Whether confidence stays honest when images get worse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Chart, Metric, Series
from holdfast.audit.numbers import quantity
from holdfast.audit.predictions import Predictions
from holdfast.audit.resampling import mean_ece
from holdfast.audit.subject import Subject
from holdfast.calibration import TemperatureScaling
from holdfast.data import CORRUPTIONS

__all__ = ["CalibrationShift"]


@dataclass(frozen=True, kw_only=True)
class CalibrationShift(Check):
    """The calibration error under common corruptions, as it is and with the temperature that suits clean images.

    Args:
        bins: of the calibration errors.
        severe: severities from this one on make the verdict.
    """

    id = "calibration-shift"
    section = "calibration"
    title = "Calibration under shift"
    question = "Does its confidence fall when images get worse?"
    needs = ("scores",)

    bins: int = 15
    severe: int = 3

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        fit, _, source = subject.held_out()
        temperature = TemperatureScaling().fit(torch.from_numpy(fit.logits), torch.from_numpy(fit.y))
        severities = subject.profile.severities
        cells = {(c, s): subject.corrupted(c, s) for c in CORRUPTIONS for s in severities}
        severe = [cell for (_, s), cell in cells.items() if s >= self.severe]
        if not severe:
            severe = [cell for (_, s), cell in cells.items() if s == max(severities)]
        rng, resamples = subject.run.numpy_rng("calibration-shift"), subject.profile.resamples
        value, low, high = mean_ece(severe, rng=rng, resamples=resamples, bins=self.bins)
        scaled = [_scaled(cell, temperature.value) for cell in severe]
        after = float(np.mean([stats.ece(cell.confidence, cell.correct, self.bins) for cell in scaled]))
        worst = max(CORRUPTIONS, key=lambda c: stats.ece(*_last(cells, c, severities), self.bins))
        return Answer(
            metrics=[
                Metric(
                    name="ece-severe",
                    value=value,
                    low=low,
                    high=high,
                    n=len(severe[0]),
                    unit="rate",
                    better="lower",
                    title="Mean calibration error under severe corruption",
                ),
                Metric(
                    name="ece-severe-scaled",
                    value=after,
                    n=len(severe[0]),
                    unit="rate",
                    better="lower",
                    title="The same after temperature scaling on clean images",
                ),
                Metric(
                    name="ece-worst",
                    value=stats.ece(*_last(cells, worst, severities), self.bins),
                    n=len(severe[0]),
                    unit="rate",
                    better="lower",
                    title=f"Calibration error under the worst corruption ({worst}, severity {max(severities)})",
                ),
            ],
            figures=[_curves(cells, severities, temperature.value, self.bins)],
            remedies=[
                Remedy(
                    Action(
                        text=f"Temperature scaling brings it to {quantity(after, 'rate')}; calibrate on corrupted "
                        "images too if that is not enough.",
                        method="temperature-scaling",
                        command="holdfast show temperature-scaling",
                    )
                    if after < value
                    else Action(
                        text="A temperature fitted on clean images does not mend it: fit one on corrupted images too, "
                        "train with augmentation, or do not act on confidence where images may be bad."
                    ),
                    when="ece-severe",
                )
            ],
            settings={
                "bins": self.bins,
                "severities": [s for s in severities if s >= self.severe] or [max(severities)],
                "images per corruption and severity": len(severe[0]),
                "temperature": source,
            },
            limitations=["The interval covers the choice of images, not the choice of corruptions."],
        )


def _scaled(seen: Predictions, temperature: float) -> Predictions:
    return Predictions(seen.logits / temperature, seen.y)


def _last(
    cells: dict[tuple[str, int], Predictions], name: str, severities: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    cell = cells[name, max(severities)]
    return cell.confidence, cell.correct


def _curves(
    cells: dict[tuple[str, int], Predictions], severities: tuple[int, ...], temperature: float, bins: int
) -> Chart:
    series = []
    for title, scale in (("as it is", 1.0), ("after temperature scaling", temperature)):
        errors = [
            [
                stats.ece(cell.confidence, cell.correct, bins)
                for cell in (_scaled(cells[c, s], scale) for c in CORRUPTIONS)
            ]
            for s in severities
        ]
        series.append(
            Series(
                name=title,
                x=[float(s) for s in severities],
                y=[float(np.mean(e)) for e in errors],
                low=[float(np.min(e)) for e in errors],
                high=[float(np.max(e)) for e in errors],
            )
        )
    return Chart(
        kind="line",
        title="Calibration error by severity",
        x_label="severity",
        y_label="mean calibration error",
        series=series,
        caption="Mean over the corruptions; whiskers reach from the best to the worst of them.",
    )
