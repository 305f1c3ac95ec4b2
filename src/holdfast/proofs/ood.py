"""Proofs of out-of-distribution detectors.

Post-hoc detectors share a model and a pass, so the proofs share one table of scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.data.ood_sets import ood_sets
from holdfast.models import classifier_head, extract
from holdfast.ood.evaluation import Separation, separation
from holdfast.ood.fitted import fit_on_features
from holdfast.proofs.lab import Lab, mean_of
from holdfast.proofs.proof import Measured, proof

__all__: list[str] = []


@dataclass(frozen=True)
class _Row:
    far: bool
    by_detector: dict[str, Separation]


def _table(lab: Lab, detectors: list[str]) -> dict[str, _Row]:
    """Each OOD set's separation by each detector, on the model of this scale."""
    data, model = lab.data, lab.zoo()
    assert data.train is not None
    train = extract(model, data.train, run=lab.run)
    fitted = fit_on_features(detectors, train, classifier_head(model))
    inside = extract(model, data.test, run=lab.run)
    scores = {name: detector.score(inside).numpy() for name, detector in fitted.items()}
    table = {}
    for name, (images, distance) in ood_sets(data, run=lab.run).items():
        outside = extract(model, images, run=lab.run)
        row = {}
        for detector, method in fitted.items():
            rng = lab.run.numpy_rng("bootstrap", name, detector)
            row[detector] = separation(scores[detector], method.score(outside).numpy(), rng=rng, resamples=200)
        table[name] = _Row(distance == "far", row)
    return table


def _against_msp(lab: Lab, detector: str) -> Measured:
    """The mean over far sets of FPR at 95 % TPR (ID accepted): the softmax score's minus the detector's."""
    table = {name: row.by_detector for name, row in _table(lab, ["msp", detector]).items() if row.far}
    mine = {name: next(s for d, s in row.items() if d != "msp") for name, row in table.items()}
    baseline = mean_of([row["msp"].fpr95_id for row in table.values()])
    value = mean_of([s.fpr95_id for s in mine.values()])
    # Sets are few and differ much: the interval is over images, each set's standing for itself.
    half = np.sqrt(sum(((s.intervals["fpr95_id"][1] - s.intervals["fpr95_id"][0]) / 2) ** 2 for s in mine.values()))
    half = float(half / len(mine))
    return Measured(
        value=baseline - value,
        low=baseline - value - half,
        high=baseline - value + half,
        baseline=baseline,
        baseline_name="FPR95 of msp",
        n=len(lab.data.test),
        details={
            name: {d: [round(s.auroc, 4), round(s.fpr95_id, 4)] for d, s in row.items()} for name, row in table.items()
        },
    )


@proof(
    method="energy",
    claim="On far OOD sets the energy score accepts fewer outliers at 95 % ID acceptance than the softmax score.",
    source="Liu et al. 2020, Table 1 (CIFAR-10: mean FPR95 51.0 % to 33.0 %)",
    metric="fall of mean FPR95",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.03},
)
def energy_accepts_fewer_outliers(lab: Lab) -> Measured:
    """Energy against the softmax score, on the same logits."""
    return _against_msp(lab, "energy")


@proof(
    method="knn",
    claim="On far OOD sets the distance to the k-th neighbour accepts fewer outliers than the softmax score.",
    source="Sun et al. 2022, Table 1 (CIFAR-10, without contrastive training)",
    metric="fall of mean FPR95",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.05},
)
def knn_accepts_fewer_outliers(lab: Lab) -> Measured:
    """Nearest neighbours against the softmax score, in one pass."""
    return _against_msp(lab, "knn")
