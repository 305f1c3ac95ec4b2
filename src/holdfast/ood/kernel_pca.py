"""Kernel PCA with explicit feature maps: what the detectors that score a reconstruction error share.

A map ``phi`` takes features to where the kernel is an inner product. There the training features, centred, span a
subspace, and the error of a feature is its distance from it:

    e^2 = |phi(h) - mu|^2 - |U^T (phi(h) - mu)|^2

with U the leading eigenvectors of the covariance of ``phi``. The cost of a score does not depend on the number of
training features. All of it is in float64: where the error is small, it is the difference of two close numbers.

The error may be fused with a detector that reads the logits: ``(1 - e) G``, with G the other's confidence.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.methods import Detector
from holdfast.models import Features
from holdfast.ood.head import wanted
from holdfast.run import Run

__all__ = [
    "KernelPCA",
    "fourier",
    "gaussian_kernel",
    "on_sphere",
    "principal_subspace",
    "random_frequencies",
    "squared_residual",
]

_CELLS = 2**22  # entries of mapped features at a time: 32 MiB in float64, however many dimensions the map has
_FUSED = "fused."  # before the names of the other detector's state


# --- feature maps -----------------------------------------------------------------------------------------------------


def on_sphere(h: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Features over their length: the map of the cosine kernel. A feature of zeros stays where it is."""
    return h / (h.norm(dim=1, keepdim=True) + 1e-10)


def gaussian_kernel(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], gamma: float) -> Float[Tensor, "n m"]:
    """``exp(-gamma |a_i - b_j|^2)``."""
    squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return squared.clamp_min_(0).mul_(-gamma).exp_()


def random_frequencies(dimension: int, size: int, gamma: float, seed: int) -> dict[str, Tensor]:
    """What `fourier` needs: ``frequencies`` (M, D), normal with variance ``2 gamma``, and ``phases`` (M,), float64.

    Args:
        dimension: D, of the features.
        size: M, of the mapped features.
        gamma: of the Gaussian kernel.
        seed: which draw.
    """
    rng = Run(seed=seed).rng("random Fourier features")
    frequencies = torch.randn(size, dimension, generator=rng, dtype=torch.float64) * math.sqrt(2 * gamma)
    return {
        "frequencies": frequencies,
        "phases": torch.rand(size, generator=rng, dtype=torch.float64) * 2 * math.pi,
    }


def fourier(h: Float[Tensor, "n d"], state: Mapping[str, Tensor]) -> Float[Tensor, "n m"]:
    """Random Fourier features, whose inner products approximate the Gaussian kernel (Rahimi and Recht, 2007)."""
    frequencies, phases = state["frequencies"].to(h), state["phases"].to(h)
    return torch.addmm(phases, h, frequencies.T).cos_().mul_(math.sqrt(2 / len(phases)))


# --- principal components ---------------------------------------------------------------------------------------------


def principal_subspace(
    h: Float[Tensor, "n d"], phi: Callable[[Tensor], Tensor], explained: float, who: str
) -> dict[str, Tensor]:
    """The subspace in which mapped features vary most: ``centre`` (M,) and ``basis`` (M, q), orthonormal, float64.

    Args:
        h: training features.
        phi: the map of float64 features (n, D) to (n, M).
        explained: share of the variance that the subspace holds; q is the fewest eigenvectors that do.
        who: needs it, for the messages.

    Raises:
        UserError: nothing varies.
    """
    size = phi(h[:1].double()).shape[1]
    centre = torch.stack([mapped.sum(0) for mapped in _mapped(h, phi, size)]).sum(0) / len(h)
    if len(h) <= size:  # fewer features than dimensions: their own decomposition is the smaller problem
        deviations = torch.cat(list(_mapped(h, phi, size))) - centre
        _, singular, transposed = torch.linalg.svd(deviations, full_matrices=False)
        variances, vectors = singular.square(), transposed.T
    else:
        total = h.new_zeros((size, size), dtype=torch.float64)
        for mapped in _mapped(h, phi, size):
            deviations = mapped - centre
            total.addmm_(deviations.T, deviations)
        values, vectors = torch.linalg.eigh(total)
        variances, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    shares = variances.cumsum(0)
    if float(shares[-1]) <= 1e-26 * len(h) * float(centre.square().sum()):
        raise UserError(f"{who}: the training features are all alike, so there is nothing to learn from them.")
    q = int((shares < explained * shares[-1]).sum()) + 1
    return {"centre": centre, "basis": vectors[:, :q].contiguous()}


def squared_residual(phi: Float[Tensor, "n m"], state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
    """The squared distance of mapped features from the subspace that `principal_subspace` found, at least 0."""
    deviations = phi - state["centre"].to(phi)
    explained = (deviations @ state["basis"].to(phi)).square().sum(1)
    return (deviations.square().sum(1) - explained).clamp_min(0)


def _mapped(h: Tensor, phi: Callable[[Tensor], Tensor], size: int) -> Iterator[Tensor]:
    for part in h.split(max(1, _CELLS // size)):
        yield phi(part.double())


# --- the detectors' common part ---------------------------------------------------------------------------------------


@runtime_checkable
class _Clipping(Protocol):
    """A detector that clips features before the last layer reads them."""

    def clipped(self, h: Tensor, state: Mapping[str, Tensor]) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class KernelPCA(Detector):
    """A detector by the reconstruction error of kernel PCA; the kinds differ in their map.

    Args:
        explained: share of the training features' variance that the subspace holds.
        fuse: a detector to fuse the error with: ``msp``, ``energy``, ``react`` or ``bats``; the latter two clip the
            features, and the error is then that of the clipped ones.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"logits", "penultimate"})  # the logits where fused
    needs_fit: ClassVar[bool] = True

    explained: Annotated[float, Field(gt=0, lt=1)]
    fuse: Detector | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fuse is not None and self.fuse.id not in ("msp", "energy", "react", "bats"):
            raise UserError(f"{self.id}: fuse must be msp, energy, react or bats, got {self.fuse}.")

    @abstractmethod
    def fit_map(
        self, features: Features, h: Float[Tensor, "n d"], confidence: Float[Tensor, " n"]
    ) -> dict[str, Tensor]:
        """What `phi` needs, from the training features.

        Args:
            features: as the model gave them.
            h: the penultimate ones, clipped if the fused detector clips.
            confidence: of the fused detector, or by the energy where none is fused, float64.
        """

    @abstractmethod
    def phi(self, h: Float[Tensor, "n d"], state: Mapping[str, Tensor]) -> Float[Tensor, "n m"]:
        """The feature map, float64."""

    @property
    def lossy(self) -> bool:
        """Whether the map loses part of the squared length 1 that features have, which then counts as error."""
        return False

    def fit_features(self, features: Features, head: nn.Linear | None) -> dict[str, Tensor]:
        """Learn the map and the subspace.

        Raises:
            UserError: the features are all alike, or `explained` asks for the whole space.
        """
        fused = {} if self.fuse is None else self.fuse.fit_features(features, head)
        h = self._clipped(wanted(features.penultimate), fused)
        found = self.fit_map(features, h, self._confidence(features, fused))
        found |= principal_subspace(h, lambda part: self.phi(part, found), self.explained, str(self))
        size, q = found["basis"].shape
        if q == size and not self.lossy:
            raise UserError(
                f"{self}: explained={self.explained:g} takes all {size} directions, and then no feature has an error; "
                "take a smaller one."
            )
        return found | {_FUSED + name: value for name, value in fused.items()}

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The reconstruction error (N,), at least 0; where fused, ``-(1 - e) G``, with ``e`` clipped below 1."""
        fused = {name.removeprefix(_FUSED): value for name, value in state.items() if name.startswith(_FUSED)}
        h = self._clipped(wanted(features.penultimate), fused)
        error = torch.cat(
            [self._error(part.double(), state) for part in h.split(max(1, _CELLS // len(state["centre"])))]
        )
        if self.fuse is None:
            return error
        # An error beyond 1 would turn the sign of the confidence, and call the least confident the most normal.
        return -(1 - error.clamp_max(1 - 1e-6)) * self._confidence(features, fused)

    def _error(self, h: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        phi = self.phi(h, state)
        squared = squared_residual(phi, state)
        return (squared + (1 - phi.square().sum(1)).clamp_min(0) if self.lossy else squared).sqrt()

    def _clipped(self, h: Tensor, fused: Mapping[str, Tensor]) -> Tensor:
        return self.fuse.clipped(h, fused) if isinstance(self.fuse, _Clipping) else h

    def _confidence(self, features: Features, fused: Mapping[str, Tensor]) -> Tensor:
        """The largest softmax probability for `msp`, whose score is its log odds; else minus the free energy."""
        if self.fuse is None:
            return torch.logsumexp(features.logits.double(), dim=1)
        score = self.fuse.score(features, fused).double()
        return torch.sigmoid(-score) if self.fuse.id == "msp" else -score
