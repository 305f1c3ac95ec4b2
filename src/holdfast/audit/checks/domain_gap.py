"""Whether the model does as well on one domain of the test data as on another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy, rate
from holdfast.audit.findings import Action, Metric, Table
from holdfast.audit.groups import grouping
from holdfast.audit.subject import Subject
from holdfast.errors import UserError

__all__ = ["DomainGap"]


@dataclass(frozen=True, kw_only=True)
class DomainGap(Check):
    """Accuracy on the domain the model is best at, minus that on each other domain.

    Args:
        enough: images that a domain needs to be compared.
    """

    id = "domain-gap"
    section = "corruption"
    title = "Domains"
    question = "Does it do as well on images from elsewhere?"

    enough: int = 50

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        seen = subject.predictions("test")
        domains = grouping(subject.test, "domain")
        compared = {name: seen.correct[which] for name, which in domains.items() if which.sum() >= self.enough}
        if len(compared) < 2:
            raise UserError(
                f"The test images have fewer than two domains of at least {self.enough} images; a column 'domain' "
                "would name where each comes from."
            )
        best = max(compared, key=lambda name: float(compared[name].mean()))
        worst = min(compared, key=lambda name: float(compared[name].mean()))
        a, b = compared[best], compared[worst]
        low, high = stats.newcombe(int(a.sum()), len(a), int(b.sum()), len(b))
        rows: list[list[str | float | int | None]] = [
            [name, int(which.sum()), float(seen.correct[which].mean())] for name, which in domains.items()
        ]
        return Answer(
            metrics=[
                Metric(
                    name="gap",
                    value=float(a.mean() - b.mean()),
                    low=low,
                    high=high,
                    n=len(a) + len(b),
                    unit="points",
                    better="lower",
                    title=f"Accuracy on domain {best} minus accuracy on domain {worst}",
                ),
                *(
                    rate(f"accuracy/{name}", hits, title=f"Accuracy on domain {name}")
                    for name, hits in compared.items()
                ),
            ],
            figures=[Table(title="Domains", columns=["domain", "images", "accuracy"], rows=rows, percent=["accuracy"])],
            remedies=[Remedy(Action(text=f"Add images of domain {worst} to training, or adapt the model to it."))],
            settings={"images": int(np.sum([len(h) for h in compared.values()])), "enough": self.enough},
            limitations=["The worst of several domains looks worse than it is by chance; see the intervals of each."],
        )
