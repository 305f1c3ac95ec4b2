"""How far images are from the nearest error, in the Euclidean norm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.audit.check import Answer, Check
from holdfast.audit.findings import Chart, Metric, Series
from holdfast.audit.subject import Subject
from holdfast.evasion import CW, DeepFool, MinimalAttack

__all__ = ["MinimalNorm"]

_POINTS = 25


@dataclass(frozen=True, kw_only=True)
class MinimalNorm(Check):
    """The distance to the decision boundary by DeepFool, and by C&W where the profile has it; no radius is chosen."""

    id = "minimal-norm"
    section = "evasion"
    title = "Distance to the nearest error"
    question = "How small can a change be that makes it err?"
    needs = ("gradients",)

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        n = len(subject.first(subject.profile.curve_images))
        attack = DeepFool(norm="l2")
        right = np.flatnonzero(subject.predictions("test").correct[:n])
        attacks: list[MinimalAttack] = [attack]
        if subject.profile.cw_steps:
            attacks.append(CW(norm="l2", steps=subject.profile.cw_steps))
        away: NDArray[np.float64] = np.full(len(right), np.inf)
        for each in attacks:
            found = subject.attacked(each, right)
            away = np.minimum(away, np.where(found.success, found.distance, np.inf))
        known = away[np.isfinite(away)]
        sizes = np.linalg.norm(subject.first(n).x.flatten(1).double().numpy(), axis=1)[right] / _unit(subject)
        relative = (away / np.maximum(sizes, 1e-12))[np.isfinite(away)]
        distances = np.full(n, np.nan, np.float32)
        distances[right] = np.where(np.isfinite(away), away, np.nan)
        metrics, figures = [], []
        if len(known):
            metrics = [
                Metric(
                    name="median-distance",
                    value=float(np.median(away)) if np.isfinite(np.median(away)) else float(known.max()),
                    n=len(away),
                    unit="value",
                    better="higher",
                    title="Median distance to the nearest error found (l_2, pixels in [0, 1])",
                ),
                Metric(
                    name="relative-distance",
                    value=float(relative.mean()),
                    n=len(relative),
                    unit="rate",
                    better="higher",
                    title="Mean distance as a share of the image's own norm",
                ),
            ]
            radii = np.linspace(0, float(np.quantile(known, 0.98)), _POINTS)
            figures = [
                Chart(
                    kind="line",
                    title="Accuracy by distance",
                    x_label="size of the change, l_2",
                    y_label="accuracy",
                    series=[
                        Series(
                            name="left",
                            x=[float(r) for r in radii],
                            y=[float((away > r).sum() / n) for r in radii],
                        )
                    ],
                    y_range=(0, 1),
                    level=1 / subject.data.num_classes,
                    level_label="chance",
                )
            ]
        return Answer(
            metrics=metrics,
            figures=figures,
            settings={"attacks": [str(each) for each in attacks], "norm": "l2", "images": n},
            limitations=[
                "DeepFool follows straight lines: the nearest error may be nearer, on robust models by a third or more."
                if len(attacks) == 1
                else "The nearest error may be nearer still."
            ],
            samples={"test": {"distance": distances}},
        )


def _unit(subject: Subject) -> float:
    """What the pixels of the test images have to be divided by to lie in [0, 1]."""
    return 255.0 if not subject.test.x.is_floating_point() else 1.0
