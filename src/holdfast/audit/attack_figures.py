"""The figures of attacks in the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast import stats
from holdfast.audit.check import rate
from holdfast.audit.findings import Chart, Gallery, Series, Table
from holdfast.audit.numbers import quantity
from holdfast.audit.pictures import difference, picture
from holdfast.audit.predictions import Attacked
from holdfast.audit.subject import Subject
from holdfast.data import to_float
from holdfast.evasion import Evasion

__all__ = ["Stage", "class_chart", "gallery", "query_curve", "stage_bars", "stage_table"]

_BUDGETS = 41  # points of the query curve


@dataclass(frozen=True)
class Stage:
    """An attack, the positions of the images it was let loose on, and what it did.

    `follows` says that these are the images which the attacks before it had left: a rate among them means nothing.
    """

    name: str
    attack: Evasion
    which: NDArray[np.int64]
    found: Attacked
    follows: bool = False


def stage_bars(
    subject: Subject, stages: list[Stage], without: Mapping[str, NDArray[np.bool_]], standing: NDArray[np.bool_]
) -> Chart:
    """Accuracy without an attack, under each, and under all."""
    rates = {name: rate("", right) for name, right in without.items()}
    rates |= {s.name: rate("", ~s.found.success) for s in stages if not s.follows}
    rates["all attacks"] = rate("", standing)
    return Chart(
        kind="bar",
        title=f"Accuracy under attack, eps {quantity(255 * subject.policy.threat.eps, 'value')}/255",
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
        caption="Whiskers are 95 % intervals (Wilson).",
    )


def stage_table(stages: list[Stage], correct: NDArray[np.bool_], cumulative: list[float]) -> Table:
    """The attacks in order, with what each left and what all before it left."""
    rows: list[list[str | float | int | None]] = [["none", len(correct), float(correct.mean()), None, None, None, None]]
    for stage, left in zip(stages, cumulative, strict=True):
        n = len(stage.which)
        won = stage.found.success & correct[stage.which]
        low, high = stats.wilson(int((~stage.found.success).sum()), n) if n else (None, None)
        rows.append(
            [
                str(stage.attack),
                n,
                float((~stage.found.success).mean()) if n else None,
                low,
                high,
                left,
                float(np.median(stage.found.queries[won])) if won.any() else None,
            ]
        )
    return Table(
        title="Attacks",
        columns=["attack", "images", "accuracy", "at least", "at most", "with all before it", "median queries"],
        rows=rows,
        percent=["accuracy", "at least", "at most", "with all before it"],
        caption=" ".join(
            f"{stage.name} attacks only the images that those before it have left." for stage in stages if stage.follows
        ),
    )


def gallery(subject: Subject, stages: list[Stage]) -> list[Gallery]:
    """Adversarial examples beside the images they were made of; none where nothing fell."""
    shown = next((stage for stage in stages if stage.name == "pgd"), stages[-1])
    classes, seen = subject.data.classes, subject.predictions("test")
    groups = []
    for x_adv, i in zip(shown.found.examples, shown.found.example_of.tolist(), strict=True):
        place = int(np.flatnonzero(shown.which == i)[0])
        clean, changed = to_float(subject.test.x[i]), torch.from_numpy(x_adv)
        confidence = quantity(float(shown.found.confidence[place]), "rate")
        groups.append(
            [
                picture(clean, f"{classes[seen.label[i]]}, {quantity(float(seen.confidence[i]), 'rate')}", "clean"),
                picture(changed, f"{classes[shown.found.prediction[place]]}, {confidence}", "adversarial"),
                difference(clean, changed),
            ]
        )
    if not groups:
        return []
    return [
        Gallery(title="Adversarial examples", groups=groups[: subject.profile.gallery], caption=f"By {shown.attack}.")
    ]


def class_chart(subject: Subject, correct: NDArray[np.bool_], standing: NDArray[np.bool_]) -> Chart:
    """Accuracy of each class, clean and under all attacks: a mean may hide a class that falls wholly."""
    y = subject.predictions("test").y[: len(correct)]
    classes = [(k, name) for k, name in enumerate(subject.data.classes) if (y == k).any()]

    def series(name: str, right: NDArray[np.bool_]) -> Series:
        rates = [rate("", right[y == k]) for k, _ in classes]
        return Series(
            name=name,
            x=[title for _, title in classes],
            y=[r.value for r in rates],
            low=[r.low or 0.0 for r in rates],
            high=[r.high or 0.0 for r in rates],
        )

    return Chart(
        kind="bar",
        title="Accuracy by class",
        y_label="accuracy",
        series=[series("clean", correct), series("under all attacks", standing)],
        y_range=(0, 1),
        caption="Whiskers are 95 % intervals (Wilson).",
    )


def query_curve(black_box: Stage, correct: NDArray[np.bool_]) -> list[Chart]:
    """Accuracy over the queries spent by the attack without gradients; none where nothing fell."""
    right, fell = correct[black_box.which], black_box.found.success & correct[black_box.which]
    if not fell.any():
        return []
    spent = black_box.found.queries
    budgets = np.unique(np.linspace(0, int(spent.max()), _BUDGETS).round())
    title = black_box.attack.card().title
    return [
        Chart(
            kind="line",
            title=f"Accuracy by queries of {title}",
            x_label="queries per image",
            y_label="accuracy",
            series=[
                Series(
                    name=f"under {title}",
                    x=[float(budget) for budget in budgets],
                    y=[float((right & ~(fell & (spent <= budget))).mean()) for budget in budgets],
                )
            ],
            y_range=(0, 1),
        )
    ]
