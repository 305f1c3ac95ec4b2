"""How near generated images are to real ones: distances between what a feature network makes of the two.

A number of these means nothing without the network that gave the features, so each carries its name. A classifier's
features ignore what it ignores: texture or background to one that names digits. None of the numbers made with small
networks can be compared with published ones; compare them with those of two halves of the real images, and of noise.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017,
arXiv:1706.08500 (FID); Bińkowski et al., "Demystifying MMD GANs", ICLR 2018, arXiv:1801.01401 (KID); Kynkäänniemi et
al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019, arXiv:1904.06991.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.generative.judge import as_images
from holdfast.models import extract
from holdfast.run import Run

__all__ = ["Comparison", "FeatureNetwork", "compare", "fid", "kid", "precision_recall"]


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A classifier whose penultimate features stand for images.

    Args:
        name: that goes with every number.
        model: ends in a linear layer, whose input are the features.
    """

    name: str
    model: nn.Module

    def __call__(self, x: Float[Tensor, "n c h w"], *, run: Run) -> Float64[Tensor, "n d"]:
        """The features of images in [0, 1].

        Raises:
            UserError: the model does not end in a linear layer.
        """
        found = extract(self.model, as_images(x), run=run).penultimate
        if found is None:
            raise UserError(
                f"{self.name}: its logits do not come from a linear layer, so it has no features to compare."
            )
        return found.double()


@dataclass(frozen=True)
class Comparison:
    """Generated images against real ones.

    Args:
        features: name of the network.
        generated, real: how many images.
        values: by metric: ``fid`` and ``kid``, lower is nearer; ``precision`` and ``recall`` in [0, 1].
    """

    features: str
    generated: int
    real: int
    values: Mapping[str, float]

    @property
    def sentence(self) -> str:
        """All of it in words."""
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        return f"{numbers} (features of {self.features}, {self.generated} generated against {self.real} real images)"

    def to_json(self) -> dict[str, object]:
        """All of it as plain values."""
        return {
            "features": self.features,
            "generated": self.generated,
            "real": self.real,
            "values": dict(self.values),
        }


def compare(
    network: FeatureNetwork, generated: Float[Tensor, "n c h w"], real: Float[Tensor, "m c h w"], *, run: Run
) -> Comparison:
    """FID, KID, precision and recall of generated images in [0, 1].

    Args:
        network: gives the features.
        generated, real: the images; as many of both, for FID falls with their number.
        run: device, and the random subsets of KID.
    """
    made, true = (network(x, run=run) for x in (generated, real))
    precision, recall = precision_recall(made, true)
    values = {"fid": fid(made, true), "kid": kid(made, true, rng=run.rng("kid")), "precision": precision}
    return Comparison(network.name, len(made), len(true), values | {"recall": recall})


def fid(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """The squared Fréchet distance between normal distributions with the means and covariances of two sets.

    The root of the product of the covariances has the trace of that of a symmetric matrix, so two symmetric
    eigendecompositions in float64 do, and no rounding can make it complex.

    Raises:
        UserError: a set has fewer than two samples.
    """
    if min(len(a), len(b)) < 2:
        raise UserError(f"fid: it needs at least two images on either side, got {len(a)} and {len(b)}.")
    a, b = a.double(), b.double()
    of_a, of_b = (torch.atleast_2d(torch.cov(s.T)) for s in (a, b))
    values, vectors = torch.linalg.eigh(of_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ of_b @ root).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + of_a.trace() + of_b.trace() - 2 * shared)


def kid(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, rng: torch.Generator, subsets: int = 50, size: int = 500
) -> float:
    """The squared maximum mean discrepancy with a cubic kernel, unbiased: its mean over random subsets.

    Args:
        a, b: features.
        rng: draws the subsets.
        subsets: how many.
        size: samples of each side in a subset, at most those that there are.

    Raises:
        UserError: a set has fewer than two samples.
    """
    size = min(size, len(a), len(b))
    if size < 2:
        raise UserError(f"kid: it needs at least two images on either side, got {len(a)} and {len(b)}.")
    total = 0.0
    for _ in range(subsets):
        x, y = (s[torch.randperm(len(s), generator=rng)[:size].to(s.device)].double() for s in (a, b))
        xx, yy, xy = _cubic(x, x), _cubic(y, y), _cubic(x, y)
        own = sum(float((k.sum() - k.trace()) / (size * (size - 1))) for k in (xx, yy))
        total += own - 2 * float(xy.mean())
    return total / subsets


def precision_recall(made: Float[Tensor, "n d"], real: Float[Tensor, "m d"], *, k: int = 3) -> tuple[float, float]:
    """The share of made samples within the real ones' manifold, and the other way round.

    The manifold of a set is the union of balls around its samples that reach to the k-th nearest of the others.

    Raises:
        UserError: a set has no k others.
    """
    if min(len(made), len(real)) <= k:
        raise UserError(f"precision and recall: they need more than {k} images on either side.")
    made, real = made.double(), real.double()
    return _within(made, real, k), _within(real, made, k)


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: Tensor, others: Tensor, k: int) -> float:
    """The share of `x` that lies in the manifold of the others."""
    return float((torch.cdist(x, others) <= _reach(others, k)).any(1).double().mean())


def _reach(x: Float64[Tensor, "n d"], k: int) -> Float64[Tensor, " n"]:
    """The distance from each sample to its k-th neighbour, itself not counted."""
    distances = torch.cdist(x, x)
    distances.fill_diagonal_(0)  # which rounding may have moved
    return distances.kthvalue(k + 1, dim=1).values
