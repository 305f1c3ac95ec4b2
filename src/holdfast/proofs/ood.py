"""Proofs of the detectors that read logits or distances, on the shared bench."""

from __future__ import annotations

from holdfast.proofs.lab import Lab
from holdfast.proofs.ood_bench import fall_of_fpr95
from holdfast.proofs.proof import Measured, proof

__all__: list[str] = []


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
    return fall_of_fpr95(lab, "energy", "msp", "far")


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
    return fall_of_fpr95(lab, "knn", "msp", "far")
