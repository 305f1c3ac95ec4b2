"""Whether the model is right as often as it says, as it is and after temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Chart, Metric, Series, Table
from holdfast.audit.numbers import quantity
from holdfast.audit.predictions import Predictions
from holdfast.audit.resampling import mean_ece
from holdfast.audit.subject import Subject
from holdfast.calibration import TemperatureScaling, ece_floor

__all__ = ["Calibration"]


@dataclass(frozen=True, kw_only=True)
class Calibration(Check):
    """Expected calibration error, proper scores, reliability diagram, before and after temperature scaling.

    Args:
        bins: of the calibration errors and the diagram.
    """

    id = "calibration"
    section = "calibration"
    title = "Calibration"
    question = "Is it right as often as its confidence says?"
    needs = ("scores",)

    bins: int = 15

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        seen = subject.predictions("test")
        fit, before, source = subject.held_out()
        temperature = TemperatureScaling().fit(torch.from_numpy(fit.logits), torch.from_numpy(fit.y))
        after = Predictions(temperature(torch.from_numpy(before.logits)).numpy(), before.y)
        rng = subject.run.numpy_rng("calibration")
        resamples = subject.profile.resamples
        value, low, high = mean_ece([seen], rng=rng, resamples=resamples, bins=self.bins)
        scaled, scaled_low, scaled_high = mean_ece([after], rng=rng, resamples=resamples, bins=self.bins)
        floor = ece_floor(seen.confidence, self.bins, rng=rng)
        n = len(seen)
        shared: dict[str, Any] = {"n": n, "better": "lower"}
        return Answer(
            metrics=[
                Metric(name="ece", value=value, low=low, high=high, unit="rate", title="Calibration error", **shared),
                Metric(
                    name="ece-by-chance",
                    value=floor.mean,
                    n=n,
                    unit="rate",
                    title="Calibration error of a perfectly calibrated model on as many images",
                ),
                Metric(
                    name="ece-equal-width",
                    value=stats.ece(seen.confidence, seen.correct, self.bins, equal_mass=False),
                    unit="rate",
                    title="Calibration error, bins of equal width",
                    **shared,
                ),
                Metric(
                    name="adaptive-ece",
                    value=stats.adaptive_ece(seen.probabilities, seen.y, self.bins),
                    unit="rate",
                    title="Calibration error of all classes' probabilities (adaptive)",
                    **shared,
                ),
                _overconfidence(seen),
                _mean("brier", stats.brier(seen.probabilities, seen.y), "value", "Brier score", subject),
                _mean("nll", stats.nll(seen.logits, seen.y), "nats", "Negative log likelihood", subject),
                Metric(
                    name="temperature",
                    value=temperature.value,
                    n=len(fit),
                    title="Temperature that held-out data ask for (above 1: overconfident)",
                ),
                Metric(
                    name="ece-scaled",
                    value=scaled,
                    low=scaled_low,
                    high=scaled_high,
                    n=len(after),
                    unit="rate",
                    better="lower",
                    title="Calibration error after temperature scaling",
                ),
            ],
            figures=[_diagram(before, after, self.bins), _histogram(seen), _table(before, after, self.bins, source)],
            remedies=[
                Remedy(
                    Action(
                        text=f"Divide the logits by {temperature.value:.3g} (temperature scaling): the calibration "
                        f"error becomes {quantity(scaled, 'rate')}, and no prediction changes.",
                        method="temperature-scaling",
                        command="holdfast show temperature-scaling",
                    ),
                    when="ece",
                ),
            ]
            if scaled < value
            else [],
            settings={"bins": self.bins, "binning": "equal mass", "temperature": source, "resamples": resamples},
            limitations=[
                "Calibration is an average over this test set; on shifted images it is usually worse (see below).",
                *(
                    ["The temperature stands at its bound: the held-out predictions are all right, or mere chance."]
                    if temperature.at_bound
                    else []
                ),
            ],
            samples={"test": {"nll": stats.nll(seen.logits, seen.y).astype(np.float32)}},
        )


def _overconfidence(seen: Predictions) -> Metric:
    """Mean confidence minus accuracy; the interval is that of a mean of paired differences."""
    gaps = seen.confidence - seen.correct
    half = 1.96 * float(gaps.std()) / len(gaps) ** 0.5
    value = float(gaps.mean())
    return Metric(
        name="overconfidence",
        value=value,
        low=value - half,
        high=value + half,
        n=len(gaps),
        unit="points",
        title="Mean confidence minus accuracy",
    )


def _mean(name: str, values: np.ndarray, unit: Any, title: str, subject: Subject) -> Metric:
    rng = subject.run.numpy_rng("calibration", name)
    low, high = stats.mean_interval(values, rng=rng, resamples=subject.profile.resamples)
    return Metric(
        name=name, value=float(values.mean()), low=low, high=high, n=len(values), unit=unit, better="lower", title=title
    )


def _diagram(before: Predictions, after: Predictions, bins: int) -> Chart:
    series = []
    for name, seen in (("as it is", before), ("after temperature scaling", after)):
        found = stats.calibration_bins(seen.confidence, seen.correct, bins)
        hits = np.rint(found.accuracy * found.count).astype(int)
        ends = [stats.wilson(int(k), int(n)) for k, n in zip(hits, found.count, strict=True)]
        series.append(
            Series(
                name=name,
                x=found.confidence.tolist(),
                y=found.accuracy.tolist(),
                low=[low for low, _ in ends],
                high=[high for _, high in ends],
            )
        )
    return Chart(
        kind="line",
        title="Reliability",
        x_label="confidence",
        y_label="accuracy",
        series=series,
        y_range=(0, 1),
        diagonal=True,
        caption=f"Each point is one of up to {bins} bins of equal mass; on the diagonal, confidence is honest.",
    )


def _histogram(seen: Predictions) -> Chart:
    edges = np.linspace(0, 1, 21)
    series = []
    for name, which in (("right", seen.correct), ("wrong", ~seen.correct)):
        counts, _ = np.histogram(seen.confidence[which], edges)
        series.append(Series(name=name, x=((edges[:-1] + edges[1:]) / 2).tolist(), y=counts.astype(float).tolist()))
    return Chart(
        kind="histogram", title="Confidence", x_label="confidence", y_label="images", series=series, log_y=True
    )


def _table(before: Predictions, after: Predictions, bins: int, source: str) -> Table:
    def row(name: str, seen: Predictions) -> list[str | float | int | None]:
        return [
            name,
            len(seen),
            stats.ece(seen.confidence, seen.correct, bins),
            stats.ece(seen.confidence, seen.correct, bins, equal_mass=False),
            stats.adaptive_ece(seen.probabilities, seen.y, bins),
            float(stats.brier(seen.probabilities, seen.y).mean()),
            float(stats.nll(seen.logits, seen.y).mean()),
        ]

    return Table(
        title="Before and after temperature scaling",
        columns=["", "images", "ECE", "ECE, equal width", "adaptive ECE", "Brier", "NLL (nats)"],
        rows=[row("as it is", before), row("after temperature scaling", after)],
        percent=["ECE", "ECE, equal width", "adaptive ECE"],
        caption=f"Temperature: {source}.",
    )
