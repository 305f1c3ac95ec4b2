"""Accuracy under attack over the size of the change: how much an attacker needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast import stats
from holdfast.audit.check import Answer, Check
from holdfast.audit.findings import Chart, Metric, Series, Table
from holdfast.audit.subject import Subject
from holdfast.evasion import PGD, BallAttack, Square

__all__ = ["SecurityCurve"]


@dataclass(frozen=True, kw_only=True)
class SecurityCurve(Check):
    """PGD at growing radii; Square on a model that only answers queries.

    What falls at one radius counts as fallen at all larger ones, whose balls hold the smaller.

    Args:
        radii: in steps of 1/255, rising.
    """

    id = "security-curve"
    section = "evasion"
    title = "Security curve"
    question = "How large must a change be to make it err?"

    radii: tuple[int, ...] = (1, 2, 4, 8, 16, 32)

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        profile = subject.profile
        n = len(subject.first(profile.curve_images))
        standing = subject.predictions("test").correct[:n].copy()
        # The largest change an image is known to withstand; -1 where it is wrong to begin with.
        withstood: NDArray[np.int64] = np.where(standing, 0, -1)
        robust = [int(standing.sum())]
        for radius in self.radii:
            which = np.flatnonzero(standing)
            found = subject.attacked(_attack(subject, radius / 255), which)
            standing[which[found.success]] = False
            withstood[standing] = radius
            robust.append(int(standing.sum()))
        radii = [0, *self.radii]
        rates = np.array(robust) / n
        ends = [stats.wilson(k, n) for k in robust]
        half = max((r for r, value in zip(radii, rates, strict=True) if value >= rates[0] / 2), default=0)
        return Answer(
            metrics=[
                Metric(
                    name="area",
                    value=float(((rates[1:] + rates[:-1]) / 2 * np.diff(radii)).sum() / radii[-1]),
                    n=n,
                    unit="rate",
                    better="higher",
                    title=f"Mean accuracy over radii up to {radii[-1]}/255",
                ),
                Metric(
                    name="half-radius",
                    value=half / 255,
                    n=n,
                    unit="radius",
                    better="higher",
                    title="Largest radius tried at which half the clean accuracy is left",
                ),
                *(
                    Metric(
                        name=f"accuracy/{radius}",
                        value=float(value),
                        low=low,
                        high=high,
                        n=n,
                        unit="rate",
                        better="higher",
                        title=f"Accuracy at {radius}/255",
                    )
                    for radius, value, (low, high) in zip(radii, rates, ends, strict=True)
                ),
            ],
            figures=[
                Chart(
                    kind="line",
                    title="Security curve",
                    x_label="radius of the change, in 1/255",
                    y_label="accuracy",
                    series=[
                        Series(
                            name=f"under {'Square' if subject.only_answers else 'PGD'}",
                            x=[float(r) for r in radii],
                            y=[float(v) for v in rates],
                            low=[low for low, _ in ends],
                            high=[high for _, high in ends],
                        )
                    ],
                    y_range=(0, 1),
                    level=1 / subject.data.num_classes,
                    level_label="chance",
                ),
                Table(
                    title="Accuracy by radius",
                    columns=["radius, in 1/255", "accuracy", "at least", "at most"],
                    rows=[[r, float(v), low, high] for r, v, (low, high) in zip(radii, rates, ends, strict=True)],
                    percent=["accuracy", "at least", "at most"],
                ),
            ],
            settings={
                "norm": "linf",
                "attack": str(_attack(subject, self.radii[-1] / 255)),
                "images": n,
                "radii in 1/255": list(self.radii),
            },
            limitations=["One attack with one start: the evasion check says more at its radius."],
            samples={"test": {"withstood": withstood}},
        )


def _attack(subject: Subject, eps: float) -> BallAttack:
    """The attack at a radius: the strongest single one that the model can be asked for."""
    if subject.only_answers:
        return Square(eps=eps, queries=10 * subject.profile.curve_steps)
    return PGD(eps=eps, steps=subject.profile.curve_steps)
