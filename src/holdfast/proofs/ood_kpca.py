"""Proofs of the kernel PCA detectors, on the shared bench.

The size and share are those that suit the zoo model's 64 features; the papers' are for 512 and more.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from holdfast.models import Features
from holdfast.ood import FittedDetector, fit_on_features
from holdfast.proofs.lab import Lab
from holdfast.proofs.ood_bench import against, bench
from holdfast.proofs.proof import Measured, proof

__all__: list[str] = []

_CORP = "kpca-ood(size=1024)"
_COGAU = "kpca-cogau(gamma=2.0, size=512, explained=0.8)"


@proof(
    method="kpca-ood",
    claim="On far OOD sets the reconstruction error separates better after CoRP's feature map than without.",
    source="Fang et al. 2024, on PCA in the space of features, where it fails",
    metric="gain in mean AUROC",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.05},
)
def kernel_pca_separates_where_pca_does_not(lab: Lab) -> Measured:
    """CoRP against the error of plain PCA that explains nine tenths."""
    return against(lab, _CORP, "kpca-ood(kernel=linear, explained=0.9)", "far")


@proof(
    method="kpca-ood",
    claim="On far OOD sets CoRP separates on a par with the distance to the 50th neighbour.",
    source="Fang et al. 2024, abstract",
    metric="gain in mean AUROC",
    better="higher",
    threshold={"smoke": -0.03, "cpu": -0.03},
)
def kernel_pca_keeps_up_with_neighbours(lab: Lab) -> Measured:
    """CoRP against nearest neighbours."""
    return against(lab, _CORP, "knn", "far")


@proof(
    method="kpca-ood",
    claim="Scoring takes less than half of the time that a search among 50,000 training features takes.",
    source="Fang et al. 2024, abstract: O(1) in the number of training images against O(N)",
    metric="ratio of processor time",
    better="lower",
    threshold={"smoke": 0.5, "cpu": 0.5},
)
def kernel_pca_is_cheaper_than_a_search(lab: Lab) -> Measured:
    """Processor time of scoring cached features, the best of three; at smoke scale the bank holds repetitions."""
    table = bench(lab)
    bank = _repeated(table.features["train"], 50_000, lab)
    queries = _repeated(table.features["test"], lab.pick(smoke=500, cpu=10_000), lab)
    (kernel,) = fit_on_features([_CORP], table.features["train"], table.head).values()
    (search,) = fit_on_features(["knn"], bank, table.head).values()
    # In turns, so that a busy machine slows both.
    times = [(_seconds(kernel, queries), _seconds(search, queries)) for _ in range(3)]
    mine, theirs = np.min(times, axis=0)
    return Measured(
        value=float(mine / theirs),
        baseline=1.0,
        baseline_name="knn",
        n=len(queries),
        details={"seconds": {_CORP: round(float(mine), 3), "knn": round(float(theirs), 3)}},
    )


@proof(
    method="kpca-ood",
    claim="Which random features are drawn hardly matters.",
    source="Not a number of the paper, but what its use of random features asks for",
    metric="deviation of mean AUROC over three draws",
    better="lower",
    threshold={"smoke": 0.01, "cpu": 0.01},
)
def kernel_pca_does_not_depend_on_the_draw(lab: Lab) -> Measured:
    """Mean AUROC on far sets for three draws of the random features."""
    found = [bench(lab).auroc(f"kpca-ood(size=1024, seed={seed})", "far") for seed in range(3)]
    return Measured(
        value=float(np.std(found, ddof=1)),
        n=len(bench(lab).images["test"]),
        details={"auroc": np.round(found, 4).tolist()},
    )


@proof(
    method="kpca-cogau",
    claim="Landmarks keep up with twice as many random features on far OOD sets.",
    source="Fang et al. 2025, on the choice of landmarks: better with a cheaper map",
    metric="gain in mean AUROC",
    better="higher",
    threshold={"smoke": -0.03, "cpu": -0.03},
    note="Changed after its first run at cpu scale, which failed (-0.094): it then took the residual in the whole "
    "kernel space, ours and at that time the default. With the least confident images as landmarks, images the model "
    "is sure of lie furthest outside their span, and that part of the error makes them anomalies. It now takes the "
    "published residual, with which it misses by little (-0.034); threshold and other settings are as they were. They "
    "suit random features: the paper takes a smaller gamma and a larger share, which were not tried in a proof.",
)
def landmarks_need_fewer_dimensions(lab: Lab) -> Measured:
    """512 landmarks against 1024 random features; other landmarks and the other residual for comparison."""
    measured = against(lab, _COGAU, _CORP, "far")
    others = {
        "random": _COGAU.replace(")", ", landmarks=random)"),
        "least confident, rkhs": _COGAU.replace(")", ", residual=rkhs)"),
        "random, rkhs": _COGAU.replace(")", ", landmarks=random, residual=rkhs)"),
    }
    measured.details["mean AUROC"] = {
        name: {d: round(bench(lab).auroc(spec, d), 4) for d in sorted(set(bench(lab).distances.values()))}
        for name, spec in {"least confident": _COGAU, **others}.items()
    }
    return measured


@proof(
    method="kpca-cogau",
    claim="At the published gamma and share, landmarks keep up with twice as many random features on far OOD sets.",
    source="Fang et al. 2025, on the choice of landmarks (ResNet-50: gamma 0.15, share 0.995)",
    metric="gain in mean AUROC",
    better="higher",
    threshold={"smoke": -0.03, "cpu": -0.03},
    note="The settings that suit random features were tried first and failed; see the other proof.",
)
def landmarks_at_published_settings_keep_up(lab: Lab) -> Measured:
    """512 landmarks with the method's own defaults against 1024 random features with theirs."""
    return against(lab, "kpca-cogau(size=512)", _CORP, "far")


def _repeated(features: Features, count: int, lab: Lab) -> Features:
    """So many rows: the first ones, or all of them and then repetitions with a little noise."""
    found = features.select(torch.arange(count) % len(features))
    h = found.penultimate
    assert h is not None
    noise = 0.01 * h.std() * torch.randn(h.shape, generator=lab.run.rng("repetitions"))
    noise[: len(features)] = 0
    return Features(logits=found.logits, penultimate=h + noise, y=found.y)


def _seconds(detector: FittedDetector, features: Features) -> float:
    started = time.process_time()
    detector.score(features)
    return time.process_time() - started
