"""Sets of classes with a promised coverage: whether the promise is kept, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Chart, Metric, Series
from holdfast.audit.subject import Subject
from holdfast.calibration import conformal, coverage

__all__ = ["Conformal"]


@dataclass(frozen=True, kw_only=True)
class Conformal(Check):
    """Split conformal prediction on held-out data: empirical coverage, overall and by class, and set sizes.

    Args:
        promised: coverage, in (0, 1).
        enough: images that a class needs for its coverage to count as the worst.
    """

    id = "conformal"
    section = "calibration"
    title = "Conformal sets"
    question = "Can it give sets of classes that hold the right one as often as promised?"
    needs = ("scores",)

    promised: float = 0.9
    enough: int = 20

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        fit, judge, source = subject.held_out()
        sets = conformal(torch.from_numpy(fit.logits), torch.from_numpy(fit.y), 1 - self.promised)
        members = sets(torch.from_numpy(judge.logits))
        found = coverage(members, torch.from_numpy(judge.y))
        n = len(judge)
        low, high = stats.wilson(int(found.covered.sum()), n)
        far = max(abs(low - self.promised), abs(high - self.promised))
        near = 0.0 if low <= self.promised <= high else min(abs(low - self.promised), abs(high - self.promised))
        sizes = found.sizes.numpy()
        size_low, size_high = stats.mean_interval(
            sizes, rng=subject.run.numpy_rng("conformal"), resamples=subject.profile.resamples
        )
        metrics = [
            Metric(name="coverage", value=found.rate, low=low, high=high, n=n, unit="rate", title="Coverage"),
            Metric(
                name="coverage-error",
                value=abs(found.rate - self.promised),
                low=near,
                high=far,
                n=n,
                unit="points",
                better="lower",
                title=f"Distance of the coverage from the promised {self.promised:.0%}",
            ),
            Metric(
                name="set-size",
                value=found.mean_size,
                low=size_low,
                high=size_high,
                n=n,
                better="lower",
                title="Mean number of classes in a set",
            ),
            Metric(
                name="empty-sets",
                value=float((sizes == 0).mean()),
                n=n,
                unit="rate",
                better="lower",
                title="Share of images for which no class is likely enough",
            ),
        ]
        counts = found.counts.numpy()
        eligible = np.flatnonzero(counts >= self.enough)
        if len(eligible) > 1:
            worst = int(eligible[np.argmin(found.by_class.numpy()[eligible])])
            hits = round(float(found.by_class[worst]) * int(counts[worst]))
            class_low, class_high = stats.wilson(hits, int(counts[worst]))
            metrics.append(
                Metric(
                    name="worst-class-coverage",
                    value=float(found.by_class[worst]),
                    low=class_low,
                    high=class_high,
                    n=int(counts[worst]),
                    unit="rate",
                    better="higher",
                    title=f"Coverage of the worst class ({subject.data.classes[worst]})",
                )
            )
        shares = np.bincount(sizes, minlength=2) / n
        return Answer(
            metrics=metrics,
            figures=[
                Chart(
                    kind="bar",
                    title="Sizes of the sets",
                    x_label="classes in the set",
                    y_label="share of images",
                    series=[Series(name="images", x=[str(s) for s in range(len(shares))], y=shares.tolist())],
                    y_range=(0, 1),
                )
            ],
            remedies=[
                Remedy(
                    Action(
                        text="Calibrate on more held-out images of the same kind as those judged; the promise supposes "
                        "that they are exchangeable.",
                    ),
                    when="coverage-error",
                ),
                Remedy(
                    Action(text="Calibrate a threshold for each class, with enough held-out images of it."),
                    when="worst-class-coverage",
                ),
            ],
            settings={
                "promised coverage": self.promised,
                "calibration images": len(fit),
                "score": "probability of the class (least ambiguous sets)",
                "source": source,
            },
            limitations=[
                "The promise holds on average over images like the calibration images, not for each class, and not "
                "under shift."
            ],
        )
