"""How often the model is right: overall, class by class, and which classes it takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy, rate
from holdfast.audit.findings import Action, Chart, Gallery, Metric, Series, Table
from holdfast.audit.numbers import quantity
from holdfast.audit.pictures import picture
from holdfast.audit.predictions import Predictions
from holdfast.audit.subject import Subject

__all__ = ["Accuracy"]


@dataclass(frozen=True, kw_only=True)
class Accuracy(Check):
    """Accuracy, recall and precision by class with Wilson's intervals, and the commonest confusions.

    Args:
        confusions: how many to list.
        enough: images that a class needs for its recall to count as the worst.
        drawn: of more classes than these, the chart shows the worst and the confusion matrix is left out.
    """

    id = "accuracy"
    section = "accuracy"
    title = "Accuracy"
    question = "How often is it right, on every class?"

    confusions: int = 10
    enough: int = 10
    drawn: int = 50

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        seen, classes = subject.predictions("test"), subject.data.classes
        n, k = len(seen), int(seen.correct.sum())
        present = np.bincount(seen.y, minlength=len(classes))
        majority = int(present.max())
        low, high = stats.newcombe_paired(seen.correct, seen.y == present.argmax())
        room = max(1 - majority / n, 1 / n)
        skill = [
            Metric(
                name="skill",
                value=(k - majority) / n / room,
                low=low / room,
                high=high / room,
                n=n,
                unit="rate",
                better="higher",
                title="Share of the errors avoided that always answering the commonest class would make",
            )
        ]
        metrics = [
            rate("accuracy", seen.correct, title="Accuracy"),
            *(skill if majority < n else []),
            *self._worst_class(seen, classes),
        ]
        if len(classes) > 5:
            top = np.argsort(-seen.logits, axis=1, kind="stable")[:, :5]
            metrics.append(
                rate("top-5-accuracy", (top == seen.y[:, None]).any(1) & seen.finite, title="Top-5 accuracy")
            )
        return Answer(
            metrics=metrics,
            figures=[
                _by_class_chart(seen, classes, self.drawn),
                _by_class_table(seen, classes),
                *([_matrix(seen, classes)] if len(classes) <= self.drawn else []),
                _confusions(seen, classes, self.confusions),
                *_mistakes(subject, seen),
            ],
            remedies=[
                Remedy(
                    Action(
                        text="Look at the worst class's images first: wrong labels, or a class rare in training, "
                        "are commoner causes than the model."
                    ),
                    when="worst-class-gap",
                ),
                Remedy(
                    Action(
                        text="Train with sharpness-aware minimisation: it usually gains accuracy, for twice the time.",
                        method="sam",
                        command="holdfast show sam",
                    ),
                    when="accuracy",
                ),
            ],
            settings={"images": n, "enough": self.enough},
            limitations=[
                "The worst of many classes looks worse than it is by chance; see the intervals of each.",
                *_missing_classes(present, classes),
            ],
            samples={"test": {"correct": seen.correct}},
        )

    def _worst_class(self, seen: Predictions, classes: Sequence[str]) -> list[Metric]:
        """The lowest recall, and how far it is from the mean recall; the gap's interval is the worst class's."""
        recalls = {}
        for label in range(len(classes)):
            of_class = seen.correct[seen.y == label]
            if len(of_class) >= self.enough:
                recalls[label] = (int(of_class.sum()), len(of_class))
        if len(recalls) < 2:
            return []
        worst = min(recalls, key=lambda label: recalls[label][0] / recalls[label][1])
        k, n = recalls[worst]
        mean = float(np.mean([a / b for a, b in recalls.values()]))
        low, high = stats.wilson(k, n)
        return [
            Metric(
                name="worst-class-recall",
                value=k / n,
                low=low,
                high=high,
                n=n,
                unit="rate",
                better="higher",
                title=f"Recall of the worst class ({classes[worst]})",
            ),
            Metric(
                name="worst-class-gap",
                value=mean - k / n,
                low=mean - high,
                high=mean - low,
                n=n,
                unit="points",
                better="lower",
                title=f"Mean recall minus that of the worst class ({classes[worst]})",
            ),
        ]


def _by_class_chart(seen: Predictions, classes: Sequence[str], most: int) -> Chart:
    present = [label for label in range(len(classes)) if (seen.y == label).any()]
    if len(present) > most:
        present = sorted(present, key=lambda label: float(seen.correct[seen.y == label].mean()))[:most]
    rates = [rate("", seen.correct[seen.y == label]) for label in present]
    names = [classes[label] for label in present]
    series = Series(
        name="recall",
        x=names,
        y=[r.value for r in rates],
        low=[r.low or 0.0 for r in rates],
        high=[r.high or 0.0 for r in rates],
    )
    return Chart(
        kind="bar",
        title="Recall by class",
        y_label="share recognised",
        series=[series],
        y_range=(0, 1),
        level=float(seen.correct.mean()),
        level_label="accuracy",
        caption="Whiskers are 95 % intervals (Wilson).",
    )


def _by_class_table(seen: Predictions, classes: Sequence[str]) -> Table:
    rows: list[list[str | float | int | None]] = []
    for label, name in enumerate(classes):
        of_class, called = seen.y == label, seen.label == label
        n = int(of_class.sum())
        if not n:
            rows.append([name, 0, None, None, None, None])
            continue
        low, high = stats.wilson(int(seen.correct[of_class].sum()), n)
        precision = float(seen.correct[called].mean()) if called.any() else None
        rows.append([name, n, float(seen.correct[of_class].mean()), low, high, precision])
    return Table(
        title="Classes",
        columns=["class", "images", "recall", "at least", "at most", "precision"],
        rows=rows,
        percent=["recall", "at least", "at most", "precision"],
    )


def _matrix(seen: Predictions, classes: Sequence[str]) -> Chart:
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(counts, (seen.y[seen.finite], seen.label[seen.finite]), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return Chart(
        kind="heatmap",
        title="Who is taken for whom",
        x_label="predicted",
        y_label="true class",
        series=[Series(name=n, x=list(classes), y=row.tolist()) for n, row in zip(classes, shares, strict=True)],
        y_range=(0, 1),
        caption="Each row sums to 1: the share of a class's images by the class predicted.",
    )


def _confusions(seen: Predictions, classes: Sequence[str], count: int) -> Table:
    wrong = seen.finite & ~seen.correct
    pairs, counts = np.unique(np.stack([seen.y[wrong], seen.label[wrong]], 1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:count]
    rows: list[list[str | float | int | None]] = [
        [classes[a], classes[b], int(counts[i]), float(counts[i] / (seen.y == a).sum())]
        for i in order
        for a, b in [pairs[i]]
    ]
    return Table(
        title="Commonest confusions",
        columns=["true class", "taken for", "images", "share of the class"],
        rows=rows,
        percent=["share of the class"],
    )


def _mistakes(subject: Subject, seen: Predictions) -> list[Gallery]:
    """The errors with the highest confidence: label noise and shortcuts show here first."""
    wrong = np.flatnonzero(~seen.correct & seen.finite)
    worst = wrong[np.argsort(-seen.confidence[wrong], kind="stable")][: subject.profile.gallery]
    if not len(worst):
        return []
    classes = subject.data.classes
    groups = [
        [
            picture(
                subject.test.x[i],
                f"{classes[seen.label[i]]}, {quantity(float(seen.confidence[i]), 'rate')}",
                f"labelled {classes[seen.y[i]]}; test image {subject.indices('test')[i]}",
            )
        ]
        for i in worst.tolist()
    ]
    return [Gallery(title="Most confident mistakes", groups=groups, caption="Some of them may be wrong labels.")]


def _missing_classes(present: np.ndarray, classes: Sequence[str]) -> list[str]:
    absent = [name for name, count in zip(classes, present, strict=True) if not count]
    if not absent:
        return []
    shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
    return [f"No test image shows {shown}: nothing is known of the model there."]
