"""What the proofs of detectors share: one model, one pass over each set, and every detector's scores.

At ``cpu`` scale the model is the zoo's ResNet-20 for CIFAR-10, the near set CIFAR-100, and the far sets are drawn
shapes, digits, phase-scrambled test images and noise. At smoke scale it is a small network on digits, and all sets are
far ones.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from holdfast import catalog
from holdfast.data import Images
from holdfast.data.ood_sets import Distance, ood_sets
from holdfast.methods import Detector
from holdfast.models import Features, classifier_head, extract
from holdfast.ood import FittedDetector, NetworkDetector, Separation, fit_detectors, fit_on_features, score_detectors
from holdfast.ood.evaluation import separation
from holdfast.proofs.lab import Lab, mean_of
from holdfast.proofs.proof import Measured

__all__ = ["Bench", "against", "bench", "fall_of_fpr95", "mean_separation"]

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Bench:
    """A model, what it makes of known and unknown images, and the detectors' answers, each worked out once.

    Args:
        lab: of the experiment.
        model: the classifier.
        head: its last linear layer.
        images: of each set; ``train`` and ``test`` are known, the others unknown.
        distances: ``near`` or ``far`` for each unknown set.
        features: of each set.
    """

    lab: Lab
    model: nn.Module
    head: nn.Linear | None
    images: Mapping[str, Images]
    distances: Mapping[str, Distance]
    features: Mapping[str, Features]
    _scores: dict[str, dict[str, Scores]] = field(default_factory=dict)

    def fitted(self, detector: str) -> FittedDetector:
        """The detector, fitted on the training images."""
        method = catalog.build(detector, kind=Detector)
        if isinstance(method, NetworkDetector):
            (found,) = fit_detectors([method], self.model, self.images["train"], run=self.lab.run).values()
        else:
            (found,) = fit_on_features([method], self.features["train"], self.head).values()
        return found

    def scores(self, detector: str) -> dict[str, Scores]:
        """Its scores of the test images and of each unknown set."""
        if detector not in self._scores:
            fitted = self.fitted(detector)
            sets = ["test", *self.distances]
            if isinstance(fitted.method, NetworkDetector):
                run = self.lab.run
                found = {s: score_detectors({detector: fitted}, self.model, self.images[s], run=run) for s in sets}
                self._scores[detector] = {s: by[detector].numpy() for s, by in found.items()}
            else:
                self._scores[detector] = {s: fitted.score(self.features[s]).numpy() for s in sets}
        return self._scores[detector]

    def separations(self, detector: str, distance: Distance) -> dict[str, Separation]:
        """How well it tells each unknown set of a kind from the test images."""
        scores = self.scores(detector)
        return {
            s: separation(
                scores["test"], scores[s], rng=self.lab.run.numpy_rng("bootstrap", s, detector), resamples=200
            )
            for s, kind in self.distances.items()
            if kind == distance
        }

    def auroc(self, detector: str, distance: Distance) -> float:
        """The plain mean of the AUROC over the sets of a kind."""
        return mean_of([s.auroc for s in self.separations(detector, distance).values()])


@functools.lru_cache(maxsize=1)
def bench(lab: Lab) -> Bench:
    """The bench of a scale and seed."""
    data, model = lab.data, lab.zoo()
    assert data.train is not None
    unknown = ood_sets(data, run=lab.run)
    images = {"train": data.train, "test": data.test, **{name: found for name, (found, _) in unknown.items()}}
    return Bench(
        lab=lab,
        model=model,
        head=classifier_head(model),
        images=images,
        distances={name: distance for name, (_, distance) in unknown.items()},
        features={name: extract(model, found, run=lab.run) for name, found in images.items()},
    )


def mean_separation(separations: Mapping[str, Separation], field: str) -> tuple[float, float]:
    """The mean of a metric over sets, and half the width of its 95 % interval.

    Sets are few and differ much: the interval is over images, each set's standing for itself.
    """
    value = mean_of([getattr(s, field) for s in separations.values()])
    widths = [(s.intervals[field][1] - s.intervals[field][0]) / 2 for s in separations.values()]
    return value, float(np.sqrt(np.sum(np.square(widths)))) / len(widths)


def against(lab: Lab, detector: str, baseline: str, distance: Distance, metric: str = "auroc") -> Measured:
    """The mean of a metric over the sets of a kind: the detector's less the baseline's.

    The interval is the detector's own; both score the same images, so that of the difference is narrower.
    """
    table = bench(lab)
    mine, theirs = (table.separations(d, distance) for d in (detector, baseline))
    value, half = mean_separation(mine, metric)
    reference, _ = mean_separation(theirs, metric)
    return Measured(
        value=value - reference,
        low=value - reference - half,
        high=value - reference + half,
        baseline=reference,
        baseline_name=f"{metric} of {baseline}",
        n=len(table.images["test"]),
        details={
            s: {
                detector: [round(mine[s].auroc, 4), round(mine[s].fpr95_id, 4)],
                baseline: [round(theirs[s].auroc, 4), round(theirs[s].fpr95_id, 4)],
            }
            for s in mine
        },
    )


def fall_of_fpr95(lab: Lab, detector: str, baseline: str, distance: Distance) -> Measured:
    """How much less of the unknown images the detector accepts than the baseline, where 95 % of the known are."""
    rise = against(lab, detector, baseline, distance, "fpr95_id")
    assert rise.low is not None
    assert rise.high is not None
    return dataclasses.replace(rise, value=-rise.value, low=-rise.high, high=-rise.low)
