"""Whether scores read off the model tell images of none of its classes from those it knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Chart, Gallery, Metric, Series, Table
from holdfast.audit.numbers import quantity
from holdfast.audit.pictures import picture
from holdfast.audit.subject import UNKNOWN, Subject
from holdfast.data import to_float
from holdfast.errors import UserError
from holdfast.models import classifier_head, frozen
from holdfast.ood import FittedDetector, Separation, fit_on_features, separation

__all__ = ["UnknownInputs"]

Scores = dict[str, dict[str, NDArray[np.float64]]]
Results = dict[str, dict[str, Separation]]


@dataclass(frozen=True, kw_only=True)
class UnknownInputs(Check):
    """Every detector on every set of unknown images, near and far.

    The verdict goes by the detector with the best mean AUROC over all sets.

    Args:
        detectors: specs of methods of kind detector.
    """

    id = "ood"
    section = "ood"
    title = "Unknown inputs"
    question = "Does it notice inputs that belong to none of its classes?"
    needs = ("scores",)

    detectors: tuple[str, ...] = ("msp", "max-logit", "energy", "knn")

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        if not subject.unknown:
            raise UserError("There are no images of other kinds to compare with; give some as data.ood.")
        fitted, skipped = self._fitted(subject)
        sets = {name: kind for name, (kind, _) in subject.unknown.items()}
        scores: Scores = {
            name: {
                "test": detector.score(subject.features("test")).numpy(),
                **{s: detector.score(subject.features(f"{UNKNOWN}{s}")).numpy() for s in sets},
            }
            for name, detector in fitted.items()
        }
        rng = subject.run.numpy_rng("ood")
        results: Results = {
            name: {
                s: separation(by["test"], by[s], rng=rng, resamples=min(500, subject.profile.resamples)) for s in sets
            }
            for name, by in scores.items()
        }
        best = max(results, key=lambda name: float(np.mean([r.auroc for r in results[name].values()])))
        return Answer(
            metrics=[
                *(m for kind in ("far", "near") for m in _summary(kind, best, results[best], sets)),
                *_each(results, sets),
            ],
            figures=[
                _bars(results, sets),
                _histogram(best, scores[best], sets),
                _table(results, sets),
                *_gallery(subject, best, scores[best], sets),
            ],
            remedies=[
                Remedy(
                    Action(
                        text=f"Score inputs with {best}, the best of those tried here, and turn away what scores above "
                        "the 95th percentile of known images.",
                        method=best.partition("(")[0],
                        command=f"holdfast show {best.partition('(')[0]}",
                    )
                )
            ],
            settings={
                "known": f"{len(subject.test)} test images",
                "unknown": {s: f"{len(images)} images ({kind})" for s, (kind, images) in subject.unknown.items()},
                "detectors": list(fitted),
                "verdict by": f"{best}, best mean AUROC over all sets",
            },
            limitations=[
                "The detector was chosen on the sets it is judged on, among a few; that flatters it slightly.",
                "A set that is told apart says nothing about the next one: unknown inputs have no end.",
                *(f"There is no {kind} set for these data." for kind in ("near", "far") if kind not in sets.values()),
                *skipped,
            ],
            samples=_samples(scores, sets),
        )

    def _fitted(self, subject: Subject) -> tuple[dict[str, FittedDetector], list[str]]:
        """The detectors that this model and these data allow, and why the others do not."""
        train = subject.features("train") if subject.has("train") else None
        with frozen(subject.model, device=subject.run.torch_device):
            head = classifier_head(subject.model, to_float(subject.test.x[:2]).to(subject.run.torch_device))
        fitted: dict[str, FittedDetector] = {}
        skipped = []
        for spec in self.detectors:
            try:
                found = fit_on_features([spec], train, head)
                for detector in found.values():
                    detector.score(subject.features("test").select(slice(0, 2)))
                fitted |= found
            except UserError as error:
                skipped.append(f"Left out: {error}")
        if not fitted:
            raise UserError(" ".join(skipped))
        return fitted, skipped


def _summary(kind: str, best: str, results: dict[str, Separation], sets: dict[str, str]) -> list[Metric]:
    """The mean AUROC over the sets of a kind; the mean of their intervals is wide enough however they correlate."""
    of_kind = [results[s] for s in sets if sets[s] == kind]
    if not of_kind:
        return []
    return [
        Metric(
            name=f"{kind}-auroc",
            value=float(np.mean([r.auroc for r in of_kind])),
            low=float(np.mean([r.intervals["auroc"][0] for r in of_kind])),
            high=float(np.mean([r.intervals["auroc"][1] for r in of_kind])),
            n=sum(r.n_out for r in of_kind) + of_kind[0].n_in,
            better="higher",
            title=f"Mean AUROC on {kind} sets (by {best})",
        )
    ]


def _each(results: Results, sets: dict[str, str]) -> list[Metric]:
    kinds: tuple[tuple[str, str, Any, Any], ...] = (
        ("auroc", "AUROC", "value", "higher"),
        ("fpr95_id", "Unknown images accepted when 95 % of the known are,", "rate", "lower"),
        ("fpr95_ood", "Known images flagged when 95 % of the unknown are,", "rate", "lower"),
    )
    return [
        Metric(
            name=f"{field.replace('_', '-')}/{name}/{s}",
            value=getattr(result, field),
            low=result.intervals[field][0],
            high=result.intervals[field][1],
            n=result.n_in + result.n_out,
            unit=unit,
            better=better,
            title=f"{title} {name} on {s} ({sets[s]})",
        )
        for name, by_set in results.items()
        for s, result in by_set.items()
        for field, title, unit, better in kinds
    ]


def _bars(results: Results, sets: dict[str, str]) -> Chart:
    return Chart(
        kind="bar",
        title="AUROC by set and detector",
        y_label="AUROC",
        series=[
            Series(
                name=name,
                x=[f"{s} ({kind})" for s, kind in sets.items()],
                y=[by_set[s].auroc for s in sets],
                low=[by_set[s].intervals["auroc"][0] for s in sets],
                high=[by_set[s].intervals["auroc"][1] for s in sets],
            )
            for name, by_set in results.items()
        ],
        y_range=(0, 1),
        level=0.5,
        level_label="chance",
    )


def _histogram(best: str, scores: dict[str, NDArray[np.float64]], sets: dict[str, str]) -> Chart:
    groups = {"known": scores["test"]}
    for kind in ("near", "far"):
        of_kind = [scores[s] for s in sets if sets[s] == kind]
        if of_kind:
            groups[f"unknown, {kind}"] = np.concatenate(of_kind)
    low, high = np.quantile(np.concatenate(list(groups.values())), [0.001, 0.999])
    edges = np.linspace(low, high if high > low else low + 1, 41)
    series = []
    for name, values in groups.items():
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        series.append(Series(name=name, x=((edges[:-1] + edges[1:]) / 2).tolist(), y=(counts / len(values)).tolist()))
    return Chart(
        kind="histogram",
        title=f"Scores of {best}",
        x_label="anomaly score",
        y_label="share of images",
        series=series,
        caption="The two-thousandths of the images with extreme scores stand at the ends.",
    )


def _table(results: Results, sets: dict[str, str]) -> Table:
    rows: list[list[str | float | int | None]] = [
        [name, s, sets[s], r.n_out, r.auroc, r.aupr_out, r.aupr_in, r.fpr95_id, r.fpr95_ood]
        for name, by_set in results.items()
        for s, r in by_set.items()
    ]
    return Table(
        title="Detectors",
        columns=[
            "detector",
            "set",
            "kind",
            "images",
            "AUROC",
            "AUPR, unknown",
            "AUPR, known",
            "unknown accepted at 95 % known",
            "known flagged at 95 % unknown",
        ],
        rows=rows,
        percent=["unknown accepted at 95 % known", "known flagged at 95 % unknown"],
        caption="FPR95 is given both ways round, since papers differ. AUPR depends on the sizes of the sets.",
    )


def _gallery(
    subject: Subject, best: str, scores: dict[str, NDArray[np.float64]], sets: dict[str, str]
) -> list[Gallery]:
    """The unknown images that look most normal, the sets taking turns."""
    classes, groups = subject.data.classes, []
    order = {s: np.argsort(scores[s], kind="stable") for s in sets}
    for turn in range(subject.profile.gallery):
        s = list(sets)[turn % len(sets)]
        place = turn // len(sets)
        if place >= len(order[s]):
            continue
        i = int(order[s][place])
        seen = subject.predictions(f"{UNKNOWN}{s}")
        known_below = float((scores["test"] <= scores[s][i]).mean())
        groups.append(
            [
                picture(
                    subject.images(f"{UNKNOWN}{s}").x[i],
                    f"{classes[seen.label[i]]}, {quantity(float(seen.confidence[i]), 'rate')}",
                    f"{s} ({sets[s]}); {quantity(1 - known_below, 'rate')} of known images score as more unusual",
                )
            ]
        )
    return [Gallery(title="Unknown images scored as normal", groups=groups, caption=f"By {best}.")]


def _samples(scores: Scores, sets: dict[str, str]) -> dict[str, dict[str, NDArray[np.float32]]]:
    samples: dict[str, dict[str, NDArray[np.float32]]] = {"test": {}, **{f"{UNKNOWN}{s}": {} for s in sets}}
    for name, by in scores.items():
        column = name.replace("(", " ").replace(")", "").strip()
        samples["test"][column] = by["test"].astype(np.float32)
        for s in sets:
            samples[f"{UNKNOWN}{s}"][column] = by[s].astype(np.float32)
    return samples
