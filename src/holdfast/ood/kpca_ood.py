"""Kernel PCA: an anomaly is not rebuilt from the directions in which training features vary, once a kernel bends them.

Plain PCA does not separate features of known and unknown images. After the map of the cosine kernel (CoP), or that and
random features of a Gaussian kernel (CoRP), it does, for the price of a matrix product and without a bank of features.

Fang et al., "Kernel PCA for Out-of-Distribution Detection", NeurIPS 2024, arXiv:2402.02949.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from holdfast.methods import Detector, Paper
from holdfast.models import Features
from holdfast.ood.kernel_pca import KernelPCA, fourier, on_sphere, random_frequencies

__all__ = ["KernelPCAOOD"]


@dataclass(frozen=True, kw_only=True)
class KernelPCAOOD(
    KernelPCA,
    id="kpca-ood",
    title="Kernel PCA (CoP, CoRP)",
    paper=Paper(title="Kernel PCA for Out-of-Distribution Detection", arxiv="2402.02949", venue="NeurIPS", year=2024),
):
    """A large reconstruction error in kernel space marks an anomaly.

    Defaults are the paper's CoRP for a ResNet-18 on CIFAR-10. For CoP it takes ``kernel="cosine", explained=0.85``; on
    ImageNet ``gamma=3, size=4096, explained=0.5``. For features of 64 dimensions ``size=1024`` will do.

    A fused score relies on the other detector's confidence being positive, which a free energy need not be.

    Args:
        kernel: ``"cosine-gaussian"`` is CoRP, ``"cosine"`` is CoP, and ``"linear"`` plain PCA, their baseline.
        gamma: of the Gaussian kernel ``exp(-gamma |a - b|^2)`` between features of unit length.
        size: number of random features that approximate it; the error of the approximation falls with its root.
        seed: which random features are drawn.
        explained: share of the training features' variance that the subspace holds.
        fuse: a detector to fuse the error with: ``msp``, ``energy``, ``react`` or ``bats``; the latter two clip the
            features, and the error is then that of the clipped ones.
    """

    kernel: Literal["cosine-gaussian", "cosine", "linear"] = "cosine-gaussian"
    gamma: Annotated[float, Field(gt=0)] = 2.0
    size: Annotated[int, Field(ge=2)] = 2048
    seed: Annotated[int, Field(ge=0)] = 0
    explained: Annotated[float, Field(gt=0, lt=1)] = 0.8
    fuse: Detector | None = None

    def fit_map(
        self, features: Features, h: Float[Tensor, "n d"], confidence: Float[Tensor, " n"]
    ) -> dict[str, Tensor]:
        """The random frequencies and phases of CoRP; the other maps learn nothing."""
        if self.kernel != "cosine-gaussian":
            return {}
        return random_frequencies(h.shape[1], self.size, self.gamma, self.seed)

    def phi(self, h: Float[Tensor, "n d"], state: Mapping[str, Tensor]) -> Float[Tensor, "n m"]:
        """The feature map of the kernel, or its approximation by random features."""
        if self.kernel == "linear":
            return h
        return fourier(on_sphere(h), state) if self.kernel == "cosine-gaussian" else on_sphere(h)
