"""Kernel PCA with landmarks: the cosine-Gaussian kernel, approximated from the training images the model doubts most.

Where `kpca-ood` maps features at random, this detector's map is learnt: the kernel with M landmarks, whitened
(Nystroem). Landmarks near the edge of what is known serve better than random ones, and fewer of them are needed.

Fang et al., "Kernel PCA for Out-of-Distribution Detection: Non-Linear Kernel Selections and Approximations", 2025,
arXiv:2505.15284.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.kernel_pca import KernelPCA, fourier, gaussian_kernel, on_sphere, random_frequencies
from holdfast.run import Run

__all__ = ["KernelPCACoGau", "PoorLandmarks"]

_COVERED = 0.9  # of the squared length 1 in kernel space, what the landmarks must span of most features


class PoorLandmarks(UserWarning):
    """The landmarks are far from most training features, or all of one class: anomalies may rank as normal."""


@dataclass(frozen=True, kw_only=True)
class KernelPCACoGau(
    KernelPCA,
    id="kpca-cogau",
    title="Kernel PCA with landmarks (CoGau)",
    paper=Paper(
        title="Kernel PCA for Out-of-Distribution Detection: Non-Linear Kernel Selections and Approximations",
        arxiv="2505.15284",
        year=2025,
    ),
):
    """A large reconstruction error in the space spanned by landmarks marks an anomaly.

    The span of the landmarks loses what is far from all of them, and with it that part of the error: a feature far
    from everything may seem rebuilt without error. As the kernel of a feature with itself is 1, the lost part is known,
    and ``residual="rkhs"`` adds it. That is for random landmarks. The least confident ones are far from the most
    confident images, which then lose most and rank as anomalies. Where the landmarks cover the features, as with the
    paper's small `gamma`, both residuals agree.

    Defaults are the paper's for a ResNet-50 on ImageNet.

    Args:
        approximation: of the kernel, by landmarks (``"nystroem"``) or ``"random-features"``, which is `kpca-ood`.
        landmarks: which training features: the ``"least-confident"`` by the energy, or by the fused detector, or
            ``"random"`` ones.
        size: number of landmarks, at most that of the training features; or of random features.
        gamma: of the Gaussian kernel ``exp(-gamma |a - b|^2)`` between features of unit length.
        residual: ``"official"`` as published, or ``"rkhs"``, see above; random features have no part left out, and the
            same error either way.
        seed: which landmarks or random features are drawn, where they are.
        explained: share of the training features' variance that the subspace holds.
        fuse: a detector to fuse the error with: ``msp``, ``energy``, ``react`` or ``bats``; the latter two clip the
            features, and the error is then that of the clipped ones.
    """

    approximation: Literal["nystroem", "random-features"] = "nystroem"
    landmarks: Literal["least-confident", "random"] = "least-confident"
    size: Annotated[int, Field(ge=2)] = 2048
    gamma: Annotated[float, Field(gt=0)] = 0.15
    residual: Literal["official", "rkhs"] = "official"
    seed: Annotated[int, Field(ge=0)] = 0
    explained: Annotated[float, Field(gt=0, lt=1)] = 0.995
    fuse: Detector | None = None

    def fit_map(
        self, features: Features, h: Float[Tensor, "n d"], confidence: Float[Tensor, " n"]
    ) -> dict[str, Tensor]:
        """The landmarks (M, D) on the sphere, and the root of their kernel's inverse (M, R), float64.

        Warns:
            PoorLandmarks: they are all of one class; or their span holds too little of most features for this
                residual.
        """
        if self.approximation == "random-features":
            return random_frequencies(h.shape[1], self.size, self.gamma, self.seed)
        order = confidence.argsort(stable=True)
        if self.landmarks == "random":
            order = torch.randperm(len(h), generator=Run(seed=self.seed).rng("landmarks")).to(h.device)
        chosen, others = order[: self.size], order[self.size :]
        marks = on_sphere(h[chosen].double())
        values, vectors = torch.linalg.eigh(gaussian_kernel(marks, marks, self.gamma))
        kept = values > values[-1] * 1e-13  # below are rounding and the copies of landmarks
        state = {"landmarks": marks, "whitening": vectors[:, kept] / values[kept].sqrt()}
        if len(features.y[chosen.cpu()].unique()) == 1 < len(features.y.unique()):
            warnings.warn(f"{self}: all landmarks are of one class.", PoorLandmarks, stacklevel=2)
        if len(others) and (self.residual == "official" or self.landmarks == "least-confident"):
            held_out = others[torch.linspace(0, len(others) - 1, min(len(others), 2000)).long()]
            covered = float(self.phi(h[held_out].double(), state).square().sum(1).median())
            if covered < _COVERED:
                harm, remedy = "anomalies may get small errors", "residual=rkhs with landmarks=random"
                if self.residual == "rkhs":
                    harm, remedy = "images the model is sure of may get large errors", "landmarks=random"
                warnings.warn(
                    f"{self}: the landmarks span only {covered:.0%} of most features, so {harm}; take a smaller gamma, "
                    f"more landmarks, or {remedy}.",
                    PoorLandmarks,
                    stacklevel=2,
                )
        return state

    def phi(self, h: Float[Tensor, "n d"], state: Mapping[str, Tensor]) -> Float[Tensor, "n m"]:
        """The kernel with the landmarks, whitened: inner products are those of the kernel within their span."""
        if self.approximation == "random-features":
            return fourier(on_sphere(h), state)
        marks, whitening = state["landmarks"].to(h), state["whitening"].to(h)
        return gaussian_kernel(on_sphere(h), marks, self.gamma) @ whitening

    @property
    def lossy(self) -> bool:
        """Landmarks lose what lies outside their span; random features lose nothing."""
        return self.approximation == "nystroem" and self.residual == "rkhs"
