"""Accuracy under fifteen common corruptions: noise, blur, weather, digital."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy, rate
from holdfast.audit.findings import Action, Chart, Gallery, Metric, Series, Table
from holdfast.audit.numbers import quantity
from holdfast.audit.pictures import picture
from holdfast.audit.predictions import Predictions
from holdfast.audit.resampling import draws, percentiles
from holdfast.audit.subject import Subject
from holdfast.data import CORRUPTIONS
from holdfast.errors import UserError

__all__ = ["CommonCorruptions"]

Cells = Mapping[tuple[str, int], Predictions]


@dataclass(frozen=True, kw_only=True)
class CommonCorruptions(Check):
    """Accuracy for each corruption and severity, and the share of the clean accuracy that is lost on average."""

    id = "corruption"
    section = "corruption"
    title = "Common corruptions"
    question = "Does it keep working when images get worse?"

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        severities = subject.profile.severities
        cells = {(c, s): subject.corrupted(c, s) for c in CORRUPTIONS for s in severities}
        n = len(next(iter(cells.values())))
        clean = subject.predictions("test").correct[:n]
        if not clean.any():
            raise UserError(f"The model is right on none of the {n} clean images, so there is nothing to lose.")
        kept = np.mean([cell.correct for cell in cells.values()], axis=0)
        rng, resamples = subject.run.numpy_rng("corruption"), subject.profile.resamples
        low, high = _drop_interval(clean, kept, rng, resamples)
        mean_low, mean_high = stats.mean_interval(kept, rng=rng, resamples=resamples)
        worst = min(cells, key=lambda key: float(cells[key].correct.mean()))
        return Answer(
            metrics=[
                Metric(
                    name="relative-drop",
                    value=1 - float(kept.mean() / clean.mean()),
                    low=low,
                    high=high,
                    n=n,
                    unit="rate",
                    better="lower",
                    title="Share of the clean accuracy lost, mean over corruptions",
                ),
                Metric(
                    name="mean-corruption-accuracy",
                    value=float(kept.mean()),
                    low=mean_low,
                    high=mean_high,
                    n=n,
                    unit="rate",
                    better="higher",
                    title="Mean accuracy over corruptions and severities",
                ),
                Metric(
                    name="mean-corruption-error",
                    value=1 - float(kept.mean()),
                    low=1 - mean_high,
                    high=1 - mean_low,
                    n=n,
                    unit="rate",
                    better="lower",
                    title="Mean corruption error (not divided by another model's)",
                ),
                rate("clean-accuracy", clean, title="Accuracy on the same images, clean"),
                rate(
                    "worst", cells[worst].correct, title=f"Accuracy under the worst ({worst[0]}, severity {worst[1]})"
                ),
            ],
            figures=[
                _heatmap(cells, severities),
                _curves(cells, severities, float(clean.mean())),
                _table(cells, severities, float(clean.mean())),
                *_gallery(subject, cells, severities),
            ],
            remedies=[
                Remedy(
                    Action(
                        text=f"Train with augmentation that covers {', '.join(_worst_group(cells))}; against noise and "
                        "blur, mild adversarial training also helps.",
                        method="pgd-at",
                        command="holdfast show pgd-at",
                    ),
                    when="relative-drop",
                )
            ],
            settings={
                "images per corruption and severity": n,
                "severities": list(severities),
                "reference": "none: errors are not divided by a reference model's, as there is no agreed one for these "
                "data; the published mCE of ImageNet divides by AlexNet's",
                "corruptions": {c.name: c.relation for c in CORRUPTIONS.values()},
            },
            limitations=[
                "Synthetic corruptions stand for natural ones only roughly.",
                "Constants were published for photographs; on very small images the same severities are harsher.",
            ],
            samples={"test": {"kept": kept.astype(np.float32)}},
        )


def _drop_interval(
    clean: NDArray[np.bool_], kept: NDArray[np.float64], rng: np.random.Generator, resamples: int
) -> tuple[float, float]:
    values = []
    for counts in draws(len(clean), resamples, rng):
        before = counts @ clean
        usable = before > 0
        values.append(1 - (counts @ kept)[usable] / before[usable])
    return percentiles(np.concatenate(values))


def _heatmap(cells: Cells, severities: tuple[int, ...]) -> Chart:
    return Chart(
        kind="heatmap",
        title="Accuracy by corruption and severity",
        x_label="severity",
        y_label="corruption",
        series=[
            Series(
                name=name,
                x=[str(s) for s in severities],
                y=[float(cells[name, s].correct.mean()) for s in severities],
            )
            for name in CORRUPTIONS
        ],
        y_range=(0, 1),
    )


def _curves(cells: Cells, severities: tuple[int, ...], clean: float) -> Chart:
    groups: dict[str, list[str]] = {}
    for corruption in CORRUPTIONS.values():
        groups.setdefault(corruption.group, []).append(corruption.name)
    series = [
        Series(
            name=group,
            x=[0.0, *map(float, severities)],
            y=[clean, *(float(np.mean([cells[c, s].correct.mean() for c in names])) for s in severities)],
        )
        for group, names in {**groups, "all": list(CORRUPTIONS)}.items()
    ]
    return Chart(
        kind="line",
        title="Accuracy by severity",
        x_label="severity (0: clean)",
        y_label="accuracy",
        series=series,
        y_range=(0, 1),
    )


def _table(cells: Cells, severities: tuple[int, ...], clean: float) -> Table:
    rows: list[list[str | float | int | None]] = []
    for name, corruption in CORRUPTIONS.items():
        accuracies = [float(cells[name, s].correct.mean()) for s in severities]
        mean = float(np.mean(accuracies))
        rows.append([name, corruption.group, *accuracies, mean, 1 - mean, 1 - mean / clean])
    columns = [f"severity {s}" for s in severities]
    return Table(
        title="Accuracy by corruption",
        columns=["corruption", "group", *columns, "mean", "mean error", "share lost"],
        rows=rows,
        percent=[*columns, "mean", "mean error", "share lost"],
    )


def _worst_group(cells: Cells) -> list[str]:
    """The three corruptions that cost most."""
    names = {
        c: float(np.mean([cell.correct.mean() for (name, _), cell in cells.items() if name == c])) for c in CORRUPTIONS
    }
    return sorted(names, key=lambda c: names[c])[:3]


def _gallery(subject: Subject, cells: Cells, severities: tuple[int, ...]) -> list[Gallery]:
    """For each of the worst corruptions, the surest error on an image that was right when clean."""
    classes, clean = subject.data.classes, subject.predictions("test")
    worst = sorted(((c, max(severities)) for c in CORRUPTIONS), key=lambda key: float(cells[key].correct.mean()))
    groups = []
    for name, severity in worst[: subject.profile.gallery]:
        cell = cells[name, severity]
        broken = np.flatnonzero(clean.correct[: len(cell)] & ~cell.correct & cell.finite)
        if not len(broken):
            continue
        i = int(broken[np.argmax(cell.confidence[broken])])
        x = subject.test.x[i]
        groups.append(
            [
                picture(x, classes[clean.y[i]], "clean"),
                picture(
                    subject.corrupt(x[None], name, severity)[0],
                    f"{classes[cell.label[i]]}, {quantity(float(cell.confidence[i]), 'rate')}",
                    f"{name}, severity {severity}",
                ),
            ]
        )
    if not groups:
        return []
    return [Gallery(title="Worst corruptions", groups=groups, caption="Images that are recognised when clean.")]
