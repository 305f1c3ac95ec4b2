"""Proofs of the detectors that read logits or distances, on the shared bench."""

from __future__ import annotations

import dataclasses

from holdfast.proofs.lab import Lab
from holdfast.proofs.ood_bench import against
from holdfast.proofs.proof import Measured, proof

__all__: list[str] = []


def _fall(difference: Measured) -> Measured:
    """A difference of FPR95 the other way round: how much less is accepted than by the baseline."""
    assert difference.low is not None
    assert difference.high is not None
    return dataclasses.replace(difference, value=-difference.value, low=-difference.high, high=-difference.low)


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
    return _fall(against(lab, "energy", "msp", "far", "fpr95_id"))


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
    return _fall(against(lab, "knn", "msp", "far", "fpr95_id"))
