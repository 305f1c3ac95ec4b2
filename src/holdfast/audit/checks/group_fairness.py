"""Whether all groups are served equally well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy, among, rate
from holdfast.audit.findings import Action, Chart, Metric, Series, Table
from holdfast.audit.groups import groupings
from holdfast.audit.predictions import Predictions
from holdfast.audit.subject import Subject
from holdfast.errors import UserError

__all__ = ["GroupFairness"]

Groups = dict[str, NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class GroupFairness(Check):
    """Accuracy of the worst group against the mean, and the largest differences of true and false positive rates.

    Args:
        enough: images that a group needs to be judged; a rate within a group needs a fifth as many.
    """

    id = "group-fairness"
    section = "fairness"
    title = "Groups"
    question = "Does it serve all groups equally well?"

    enough: int = 100

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        by = groupings(subject.test)
        if not by:
            raise UserError(
                "The test images name no groups; a column 'group' (or 'domain') with a value for each image would."
            )
        seen = subject.predictions("test")
        judged = {
            (column, name): which
            for column, groups in by.items()
            for name, which in groups.items()
            if which.sum() >= self.enough
        }
        columns = {column for column, _ in judged if sum(c == column for c, _ in judged) > 1}
        judged = {key: which for key, which in judged.items() if key[0] in columns}
        if not judged:
            raise UserError(f"No two groups have at least {self.enough} test images, too few to compare them.")
        worst = min(judged, key=lambda key: float(seen.correct[judged[key]].mean()))
        hits = seen.correct[judged[worst]]
        mean = float(seen.correct.mean())
        # Against the rest: the mean holds the group itself, and would hide part of the gap of a large one.
        rest = seen.correct[~judged[worst]]
        low, high = stats.newcombe(int(rest.sum()), len(rest), int(hits.sum()), len(hits))
        outside = len(rest) / len(seen)
        odds, odds_where, odds_interval = self._odds(seen, {c: by[c] for c in columns}, subject)
        return Answer(
            metrics=[
                Metric(
                    name="worst-group-gap",
                    value=mean - float(hits.mean()),
                    low=outside * low,
                    high=outside * high,
                    n=len(hits),
                    unit="points",
                    better="lower",
                    title=f"Accuracy minus that of the worst group ({worst[0]} {worst[1]})",
                ),
                rate("worst-group-accuracy", hits, title=f"Accuracy of the worst group ({worst[0]} {worst[1]})"),
                Metric(
                    name="equalised-odds-difference",
                    value=odds,
                    low=odds_interval[0],
                    high=odds_interval[1],
                    n=len(seen),
                    unit="points",
                    better="lower",
                    title=f"Largest difference of true or false positive rates between groups{odds_where}",
                ),
            ],
            figures=[*(_chart(seen, column, by[column], mean) for column in sorted(columns)), _table(seen, by)],
            remedies=[
                Remedy(
                    Action(
                        text=f"Look at {worst[0]} {worst[1]} first: collect more training images of it, or weight them "
                        "up."
                    )
                )
            ],
            settings={"columns": sorted(columns), "enough": self.enough, "images": len(seen)},
            limitations=[
                "Equal error rates are one notion of fairness among several that exclude each other.",
                "The worst of many groups looks worse than it is by chance; the interval of the equalised odds allows "
                "for the number of rates compared (Bonferroni).",
                *self._small(by),
            ],
        )

    def _odds(
        self, seen: Predictions, by: dict[str, Groups], subject: Subject
    ) -> tuple[float | None, str, tuple[float | None, float | None]]:
        """The largest gap of a rate between two groups, where it is, and the interval of that very gap."""
        enough = max(1, self.enough // 5)
        best: tuple[float, str, tuple[int, int, int, int]] | None = None
        compared = 0
        for column, groups in by.items():
            for label, name in enumerate(subject.data.classes):
                for kind, of_kind in (("true positive", seen.y == label), ("false positive", seen.y != label)):
                    rates = {
                        group: (int((seen.label[which & of_kind] == label).sum()), int((which & of_kind).sum()))
                        for group, which in groups.items()
                        if (which & of_kind).sum() >= enough
                    }
                    if len(rates) < 2:
                        continue
                    compared += 1
                    top = max(rates, key=lambda g: rates[g][0] / rates[g][1])
                    bottom = min(rates, key=lambda g: rates[g][0] / rates[g][1])
                    gap = rates[top][0] / rates[top][1] - rates[bottom][0] / rates[bottom][1]
                    if best is None or gap > best[0]:
                        where = f" ({kind} rate of {name}, {column} {top} against {bottom})"
                        best = gap, where, (*rates[top], *rates[bottom])
        if best is None:
            return None, "", (None, None)
        low, high = stats.newcombe(*best[2], among(compared))
        return best[0], best[1], (max(0.0, low), high)

    def _small(self, by: dict[str, Groups]) -> list[str]:
        small = [
            f"{c} {name} ({which.sum()})"
            for c, g in by.items()
            for name, which in g.items()
            if which.sum() < self.enough
        ]
        if not small:
            return []
        shown = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
        return [f"Too small to be judged: {shown}."]


def _chart(seen: Predictions, column: str, groups: Groups, mean: float) -> Chart:
    rates = {name: rate("", seen.correct[which]) for name, which in groups.items() if which.any()}
    return Chart(
        kind="bar",
        title=f"Accuracy by {column}",
        y_label="accuracy",
        series=[
            Series(
                name="accuracy",
                x=list(rates),
                y=[r.value for r in rates.values()],
                low=[r.low or 0.0 for r in rates.values()],
                high=[r.high or 0.0 for r in rates.values()],
            )
        ],
        y_range=(0, 1),
        level=mean,
        level_label="all",
        caption="Whiskers are 95 % intervals (Wilson).",
    )


def _table(seen: Predictions, by: dict[str, Groups]) -> Table:
    rows: list[list[str | float | int | None]] = []
    for column, groups in by.items():
        for name, which in groups.items():
            n = int(which.sum())
            low, high = stats.wilson(int(seen.correct[which].sum()), n)
            confidence = seen.confidence[which]
            calibration = float(np.nanmean(confidence)) - float(seen.correct[which].mean())
            rows.append([column, name, n, float(seen.correct[which].mean()), low, high, calibration])
    return Table(
        title="Groups",
        columns=["grouped by", "group", "images", "accuracy", "at least", "at most", "overconfidence"],
        rows=rows,
        percent=["accuracy", "at least", "at most", "overconfidence"],
    )
