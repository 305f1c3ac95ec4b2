"""Whether scores read off the model tell images of none of its classes from those it knows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from holdfast import catalog, stats
from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Metric
from holdfast.audit.ood_figures import Floats, Kinds, auroc_chart, gallery, histogram, ranking, table
from holdfast.audit.subject import SHIFTED, UNKNOWN, Subject
from holdfast.data import to_float
from holdfast.errors import UserError
from holdfast.methods import Detector
from holdfast.models import classifier_head, frozen
from holdfast.ood import (
    Comparison,
    FittedDetector,
    NetworkDetector,
    Separation,
    compare_detectors,
    fit_on_features,
    observe,
)

__all__ = ["UnknownInputs"]

Scores = Mapping[str, Mapping[str, Floats]]  # by detector, then by split
Halves = Mapping[str, NDArray[np.bool_]]  # by split, the images that judge

_RESAMPLES = 500
_FEWEST = 20  # images of a set that can be halved


@dataclass(frozen=True, kw_only=True)
class UnknownInputs(Check):
    """Every detector on every set of unknown images, near and far.

    One half of the images chooses the detector by which the verdict goes: that with the best mean AUROC, near and far
    sets counting alike. All figures are of the other half.

    Args:
        detectors: specs of methods of kind detector; none: those of the profile.
    """

    id = "ood"
    section = "ood"
    title = "Unknown inputs"
    question = "Does it notice inputs that belong to none of its classes?"
    needs = ("scores",)

    detectors: tuple[str, ...] = ()

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        if not subject.unknown:
            raise UserError("There are no images of other kinds to compare with; give some as data.ood.")
        subject = subject.detecting
        fitted, skipped = self._fitted(subject)
        kinds = {name: kind for name, (kind, _) in subject.unknown.items()}
        shifted = subject.profile.shifted_images != 0
        scores = _scores(subject, fitted, ["test", *(f"{UNKNOWN}{s}" for s in kinds), *([SHIFTED] if shifted else [])])
        judging, halved = _halves(subject, scores)
        weights = {s: 1 / list(kinds.values()).count(kind) for s, kind in kinds.items()}
        best = _chosen(scores, judging, weights, halved)
        judged = {d: {split: values[judging[split]] for split, values in by.items()} for d, by in scores.items()}
        comparison = compare_detectors(
            {d: by["test"] for d, by in judged.items()},
            {s: {d: by[f"{UNKNOWN}{s}"] for d, by in judged.items()} for s in kinds},
            weights=weights,
            reference=best,
            rng=subject.run.numpy_rng("ood"),
            resamples=min(_RESAMPLES, subject.profile.resamples),
        )
        spectrum = {d: _full_spectrum(by, comparison.separations[d], weights) for d, by in judged.items() if shifted}
        return Answer(
            metrics=[
                *(m for kind in ("far", "near") for m in _summary(kind, best, comparison.separations[best], kinds)),
                *([_spectrum_metric(best, spectrum[best], judged[best])] if shifted else []),
                *_each(comparison, kinds, best),
            ],
            figures=[
                auroc_chart(comparison, kinds),
                histogram(best, scores[best], kinds),
                ranking(comparison, kinds, best, {d: value for d, (value, _, _) in spectrum.items()}),
                table(comparison, kinds),
                *gallery(subject, best, scores[best], kinds),
            ],
            remedies=[
                Remedy(
                    Action(
                        text=f"Let a monitor turn away inputs that {best}, the best of those tried here, finds "
                        "strange; its alarm keeps to the rate of false alarms that you choose.",
                        method=best.partition("(")[0],
                        command=f"holdfast ood fit --model MODEL --data DATA --detector {shlex.quote(best)} "
                        "--alarm-rate 0.05 --out monitor",
                    )
                )
            ],
            settings={
                "known": f"{len(subject.test)} test images",
                "unknown": {s: f"{len(images)} images ({kind})" for s, (kind, images) in subject.unknown.items()},
                "detectors": list(fitted),
                **({"asked": f"the model's branch for {subject.branch}"} if subject.branch else {}),
                "verdict by": f"{best}, best mean AUROC, near and far sets counting alike",
                "halves": "one half of each set chose the detector, all figures are of the other"
                if halved
                else "a set is too small to be halved: the detector is judged on the images that chose it",
            }
            | ({"corrupted": f"{len(subject.shifted)} test images, each in one way"} if shifted else {}),
            limitations=[
                *([] if halved else ["The detector was chosen on the sets it is judged on; that flatters it."]),
                "A set that is told apart says nothing about the next one: unknown inputs have no end.",
                *(_MISSING[kind] for kind in ("near", "far") if kind not in kinds.values()),
                *skipped,
            ],
            samples=_samples(scores, judging),
        )

    def _fitted(self, subject: Subject) -> tuple[dict[str, FittedDetector], list[str]]:
        """The detectors that this model and these data allow, and why the others do not."""
        train = subject.features("train") if subject.has("train") else None
        with frozen(subject.model, device=subject.run.torch_device):
            head = classifier_head(subject.model, to_float(subject.test.x[:2]).to(subject.run.torch_device))
        two = subject.features("test").select(slice(0, 2))
        fitted: dict[str, FittedDetector] = {}
        skipped = []
        for spec in self.detectors or subject.profile.detectors:
            method = catalog.build(spec, kind=Detector)
            try:
                if isinstance(method, NetworkDetector):
                    detector = _looking(method, subject, head)
                else:
                    (detector,) = fit_on_features([method], train, head).values()
                    detector.score(two)
                fitted[str(method)] = detector
            except UserError as error:
                skipped.append(f"Left out: {error}")
        if not fitted:
            raise UserError(" ".join(skipped))
        return fitted, skipped


_MISSING = {
    "near": "There is no near set for these data: pictures of things like the classes, which are none of them, would "
    "make one, in a folder ood/near-NAME beside the data.",
    "far": "There is no far set for these data.",
}


def _looking(method: NetworkDetector, subject: Subject, head: nn.Linear | None) -> FittedDetector:
    """A detector that looks on, fitted, and tried on two images."""
    if subject.only_answers:
        raise UserError(f"{method} looks inside the model, which only answers.")
    fitted = subject.detector(method)
    two = subject.test.select(slice(0, 2))
    fitted.score(observe({"it": fitted}, subject.model, two, run=subject.run))
    return fitted


def _scores(subject: Subject, fitted: Mapping[str, FittedDetector], splits: list[str]) -> dict[str, dict[str, Floats]]:
    scores: dict[str, dict[str, Floats]] = {name: {} for name in fitted}
    for split in splits:
        features = subject.observed(split, fitted)
        for name, detector in fitted.items():
            scores[name][split] = detector.score(features).numpy()
    return scores


def _halves(subject: Subject, scores: Scores) -> tuple[Halves, bool]:
    """The images of each split that judge, and whether the others choose; all of them where a split is too small."""
    lengths = {split: len(values) for split, values in next(iter(scores.values())).items()}
    if min(lengths.values()) < _FEWEST:
        return {split: np.ones(n, dtype=bool) for split, n in lengths.items()}, False
    rng = subject.run.numpy_rng("ood", "halves")
    judging = {split: rng.permutation(n) % 2 == 0 for split, n in lengths.items()}
    if SHIFTED in judging:  # a corrupted image goes where the clean one goes
        judging[SHIFTED] = judging["test"][: lengths[SHIFTED]].copy()
    return judging, True


def _chosen(scores: Scores, judging: Halves, weights: Mapping[str, float], halved: bool) -> str:
    """The detector with the best mean AUROC on the images that choose."""
    choosing = {split: ~judges if halved else judges for split, judges in judging.items()}

    def mean(name: str) -> float:
        known = scores[name]["test"][choosing["test"]]
        unknown = {s: scores[name][f"{UNKNOWN}{s}"][choosing[f"{UNKNOWN}{s}"]] for s in weights}
        return sum(weights[s] * stats.auroc(known, values) for s, values in unknown.items())

    return max(scores, key=mean)


def _full_spectrum(
    by_split: Mapping[str, Floats], clean: Mapping[str, Separation], weights: Mapping[str, float]
) -> tuple[float, float, float]:
    """The mean AUROC over sets when half of the known images are corrupted, with an interval that is wide enough.

    An AUROC is linear in the distribution of the known images: that of a mixture is the mean of those of its parts.
    """
    ends = np.zeros(3)
    for s, weight in weights.items():
        pair = by_split[SHIFTED], by_split[f"{UNKNOWN}{s}"]
        hard = np.array([stats.auroc(*pair), *stats.auroc_interval(*pair)])
        easy = np.array([clean[s].auroc, *clean[s].intervals["auroc"]])
        ends += weight / sum(weights.values()) * (hard + easy) / 2
    value, low, high = ends.tolist()
    return value, low, high


def _spectrum_metric(best: str, found: tuple[float, float, float], by_split: Mapping[str, Floats]) -> Metric:
    value, low, high = found
    return Metric(
        name="full-spectrum-auroc",
        value=value,
        low=low,
        high=high,
        n=sum(map(len, by_split.values())),
        better="higher",
        title=f"Mean AUROC when half of the known images are corrupted (by {best})",
    )


def _summary(kind: str, best: str, results: Mapping[str, Separation], kinds: Kinds) -> list[Metric]:
    """The mean AUROC over the sets of a kind; the mean of their intervals is wide enough however they correlate."""
    of_kind = [results[s] for s in kinds if kinds[s] == kind]
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


def _each(comparison: Comparison, kinds: Kinds, best: str) -> list[Metric]:
    """The AUROC of every detector on every set; of the chosen one, which comes first, also both readings of FPR95."""
    fields: tuple[tuple[str, str, Any, Any], ...] = (
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
            title=f"{title} {name} on {s} ({kinds[s]})",
        )
        for name in sorted(comparison.separations, key=lambda name: name != best)
        for s, result in comparison.separations[name].items()
        for field, title, unit, better in (fields if name == best else fields[:1])
    ]


def _samples(scores: Scores, judging: Halves) -> dict[str, dict[str, NDArray[Any]]]:
    samples: dict[str, dict[str, NDArray[Any]]] = {split: {"judging": judges} for split, judges in judging.items()}
    for name, by_split in scores.items():
        column = name.replace("(", " ").replace(")", "").strip()
        for split, values in by_split.items():
            samples[split][column] = values.astype(np.float32)
    return samples
