"""Low-dimensional gradients: how an image would change the weights says whether the model knows its like.

The gradient of the free energy with respect to all weights, in units of its spread over training images, is projected
on a few directions. A linear probe is trained on the projections, and any detector reads those features and the probe's
logits as if they were the model's own.

Wu et al., "Low-Dimensional Gradient Helps Out-of-Distribution Detection", 2023, arXiv:2310.17163.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import Detector, Paper
from holdfast.models import Features, Seen, extract, sample_gradients
from holdfast.ood.knn import KNN
from holdfast.ood.network import NetworkDetector, Watch
from holdfast.run import Run

__all__ = ["LowDimGrad", "head_gradients", "leading_directions"]

_CELLS = 2**24  # entries of gradients that are there at once: 64 MiB in float32
_COLUMNS = 4096  # of the matrix of gradients, made float32 at a time
_BYTES = 4 * 2**30  # the most that training gradients and subspace may take
_PROBE = {"epochs": 10, "batch": 16, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}  # of the official code
_NEIGHBOURS = KNN(k=5)  # what the official code reads projections with, unless told otherwise; 10 on ImageNet
_BASE = "base."  # before the names of the base detector's state


@dataclass(frozen=True, kw_only=True)
class LowDimGrad(
    NetworkDetector,
    id="low-dim-grad",
    title="Low-dimensional gradients",
    paper=Paper(title="Low-Dimensional Gradient Helps Out-of-Distribution Detection", arxiv="2310.17163", year=2023),
):
    """A detector reads the projected gradient of each image in place of its features.

    The paper takes all training images, and 200 principal directions for CIFAR-10 or the 1000 class means for ImageNet;
    the defaults here are what one core can pay for. A gradient costs as much as several predictions.

    Args:
        subspace: ``"pca"``, the directions in which training gradients vary most; ``"classmean"``, their mean for each
            class, which takes little memory; or ``"random"`` directions, the baseline.
        k: number of directions, at most what the training gradients span; ``"classmean"`` has one for each class.
        samples: training images, drawn at random, whose gradients give mean, spread and subspace.
        probe_samples: training images, drawn at random, on whose projections the probe and the base detector learn.
        clip: quantile of the inverse spread above which it is cut: a weight whose gradient hardly ever moves in
            training would otherwise outweigh all others. Weights whose gradient never moves are left out.
        parameters: ``"all"`` weights of the model, or those of its last layer, whose gradient costs nothing.
        base: the detector that reads the projections and the probe's logits; none that must see the images.
    """

    needs_fit: ClassVar[bool] = True

    subspace: Literal["pca", "classmean", "random"] = "pca"
    k: Annotated[int, Field(ge=1)] = 30
    samples: Annotated[int, Field(ge=2)] = 1500
    probe_samples: Annotated[int, Field(ge=2)] = 4000
    clip: Annotated[float, Field(gt=0, le=1)] = 0.99
    parameters: Literal["all", "head"] = "all"
    base: Detector = _NEIGHBOURS

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.base, NetworkDetector):
            raise UserError(f"low-dim-grad: base must be a detector of features, but {self.base} must see the images.")

    def fit_images(self, model: nn.Module, images: Images, *, run: Run) -> dict[str, Tensor]:
        """Learn the gradients' mean and inverse spread (P,), the subspace (P, k), the probe, and the base's state.

        Raises:
            UserError: the gradients would not fit into memory, are all alike, or are not finite; or the base detector
                cannot learn from the projections.
        """
        some = _drawn(images, self.samples, run, "subspace")
        state = self._spread(model, some, run)
        state["subspace"] = self._subspace(model, some, state, run)
        some = _drawn(images, self.probe_samples, run, "probe")
        v = extract(model, some, run=run, probes={"v": Watch(self, state, ())}).observed["v"]
        head = _linear_probe(v, some.y, images.num_classes, run)
        state |= {"weight": head.weight.detach(), "bias": head.bias.detach()}
        if self.base.needs_fit:
            with torch.inference_mode():
                learnt = self.base.fit_features(_as_features(v, some.y, state), head)
            state |= {_BASE + name: value for name, value in learnt.items()}
        return {name: value.cpu() for name, value in state.items()}

    def observe(self, seen: Seen, state: Mapping[str, Tensor]) -> Float[Tensor, "n k"]:
        """The projections of the images' normalised gradients."""
        subspace = state["subspace"].to(seen.x.device)
        return torch.cat([normalised(g, state) @ subspace for _, g in self._gradients(seen)])

    def score(self, features: Features, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """The base detector's score of the projections, (N,)."""
        base = {name.removeprefix(_BASE): value for name, value in state.items() if name.startswith(_BASE)}
        return self.base.score(self.projected(features, state), base)

    def projected(self, features: Features, state: Mapping[str, Tensor]) -> Features:
        """What the base detector reads: the projections as penultimate features, and the probe's logits of them."""
        return _as_features(self.kept(features), features.y, state)

    def _gradients(self, seen: Seen) -> Iterator[tuple[slice, Float[Tensor, "m p"]]]:
        """The gradient of each image's log-sum-exp of the logits, some images at a time, and where they stand."""
        head = seen.head if self.parameters == "head" else None
        if self.parameters == "head" and head is None:
            raise UserError(f"{self}: the model ends in no linear layer; take parameters=all.")
        weights = sum(p.numel() for p in (seen.model if head is None else head).parameters())
        step = min(64, max(1, _CELLS // weights))
        for start in range(0, len(seen.x), step):
            part = slice(start, min(start + step, len(seen.x)))
            if head is not None:
                assert seen.penultimate is not None
                yield part, head_gradients(seen.penultimate[part], seen.logits[part], bias=head.bias is not None)
            else:
                found = sample_gradients(seen.model, seen.x[part], seen.y[part], loss=_free_energy, chunk=None)
                yield part, torch.cat([g.flatten(1) for g in found.values()], dim=1)

    def _spread(self, model: nn.Module, images: Images, run: Run) -> dict[str, Tensor]:
        """The mean of the gradients, and one over the root of their variance, cut off at a quantile."""
        sums: list[Tensor] = []

        def add(seen: Seen) -> None:
            for _, g in self._gradients(seen):
                if not sums:
                    self._affordable(g.shape[1], images)
                    sums.extend(g.new_zeros(2, g.shape[1], dtype=torch.float64))
                wide = g.double()  # a variance from squares rounded in float32 would be noise where it is small
                sums[0] += wide.sum(0)
                sums[1] += wide.square_().sum(0)

        extract(model, images, run=run, probes={"spread": _Look(add)})
        mean, square = sums[0] / len(images), sums[1] / len(images)
        variance = square - mean.square()
        if not torch.isfinite(variance).all():
            raise UserError(f"{self}: the gradients hold NaN or infinite values; check the model's logits.")
        alive = variance > (1e-10 * square).clamp_min(1e-12 * float(square.mean()))  # less is rounding
        if not bool(alive.any()):
            raise UserError(f"{self}: the training images' gradients are all alike, so there is nothing to learn.")
        inverse = torch.where(alive, variance, 1).rsqrt()
        ceiling = float(np.quantile(inverse[alive].cpu().numpy(), self.clip))
        return {"mean": mean.float(), "scale": (inverse.clamp(max=ceiling) * alive).float()}

    def _subspace(self, model: nn.Module, images: Images, state: Mapping[str, Tensor], run: Run) -> Tensor:
        """Directions of unit length, (P, k)."""
        size = len(state["mean"])
        if self.subspace == "random":
            draws = torch.randn(size, min(self.k, size), generator=run.rng("low-dim-grad", "directions"))
            return torch.linalg.qr(draws.to(state["mean"].device)).Q
        if self.subspace == "classmean":
            sums = state["mean"].new_zeros(images.num_classes, size)

            def add(seen: Seen) -> None:
                for part, g in self._gradients(seen):
                    sums.index_add_(0, seen.y[part], normalised(g, state))

            extract(model, images, run=run, probes={"class means": _Look(add)})
            there = sums.norm(dim=1) > 0
            return F.normalize(sums[there], dim=1).T.contiguous()
        gradients = state["mean"].new_empty(len(images), size, dtype=torch.float16)

        def keep(seen: Seen) -> None:
            for part, g in self._gradients(seen):
                start = seen.start + part.start
                gradients[start : start + len(g)] = normalised(g, state).clamp(-6e4, 6e4)

        extract(model, images, run=run, probes={"gradients": _Look(keep)})
        return leading_directions(gradients, self.k)

    def _affordable(self, size: int, images: Images) -> None:
        """Refuse before the work begins what would end without memory."""
        columns = images.num_classes if self.subspace == "classmean" else self.k
        rows = len(images) if self.subspace == "pca" else 0
        if (needed := size * (2 * rows + 4 * columns)) > _BYTES:
            raise UserError(
                f"{self}: the gradients of {size:,} weights would take {needed / 2**30:.0f} GiB of memory; take "
                "parameters=head, subspace=classmean, or smaller samples and k."
            )


def normalised(g: Float[Tensor, "n p"], state: Mapping[str, Tensor]) -> Float[Tensor, "n p"]:
    """Gradients less their mean over training images, in units of their spread."""
    return (g - state["mean"].to(g.device)) * state["scale"].to(g.device)


def head_gradients(h: Float[Tensor, "n d"], logits: Float[Tensor, "n k"], *, bias: bool) -> Float[Tensor, "n p"]:
    """The gradient of ``log sum_k exp z_k`` with respect to the last layer: probabilities times features.

    Args:
        h: the layer's input.
        logits: its output.
        bias: whether the layer has one; its gradient comes last.
    """
    p = logits.softmax(1)
    weight = (p[:, :, None] * h[:, None]).flatten(1)
    return torch.cat([weight, p], dim=1) if bias else weight


def leading_directions(gradients: Float[Tensor, "n p"], k: int) -> Float[Tensor, "p k"]:
    """The top-k right singular vectors of a matrix with many more columns than rows, float32.

    They follow from the eigenvectors of the small matrix of the rows' inner products; no iteration is needed, and the
    matrix, which may be float16, is widened only a few columns at a time.

    Args:
        gradients: (N, P).
        k: number of directions; fewer are given where the rows span fewer.
    """
    gram = gradients.new_zeros(len(gradients), len(gradients), dtype=torch.float64)
    for block in gradients.split(_COLUMNS, dim=1):
        block = block.float()
        gram += block @ block.T
    values, vectors = torch.linalg.eigh(gram)
    kept = values.flip(0)[:k] > values[-1] * 1e-6  # what float32 products can tell from nothing
    coefficients = vectors.flip(1)[:, :k][:, kept] / values.flip(0)[:k][kept].sqrt()
    directions = torch.cat([block.float().T @ coefficients.float() for block in gradients.split(_COLUMNS, dim=1)])
    return torch.linalg.qr(directions).Q


@dataclass(frozen=True)
class _Look:
    """A probe that keeps its own account."""

    take: Callable[[Seen], None]
    layers: Sequence[str] = ()

    def __call__(self, seen: Seen) -> None:
        self.take(seen)


def _as_features(v: Tensor, y: Tensor, state: Mapping[str, Tensor]) -> Features:
    return Features(logits=F.linear(v, state["weight"], state["bias"]), penultimate=v, y=y)


def _free_energy(logits: Float[Tensor, "1 k"], y: Int64[Tensor, " 1"]) -> Float[Tensor, ""]:
    return torch.logsumexp(logits, dim=1).sum()


def _drawn(images: Images, count: int, run: Run, what: str) -> Images:
    """So many of the images, in their order; all of them where there are no more."""
    if count >= len(images):
        return images
    return images.select(torch.randperm(len(images), generator=run.rng("low-dim-grad", what))[:count].sort().values)


def _linear_probe(v: Float[Tensor, "n k"], y: Int64[Tensor, " n"], num_classes: int, run: Run) -> nn.Linear:
    """Train batch normalisation and a linear layer, and give them as one linear layer of the bare features."""
    norm, linear = nn.BatchNorm1d(v.shape[1]), nn.utils.skip_init(nn.Linear, v.shape[1], num_classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.SGD(
        [*norm.parameters(), *linear.parameters()],
        lr=_PROBE["lr"],
        momentum=_PROBE["momentum"],
        weight_decay=_PROBE["weight_decay"],
    )
    rng = run.rng("low-dim-grad", "order")
    for _ in range(int(_PROBE["epochs"])):
        for batch in torch.randperm(len(v), generator=rng).split(int(_PROBE["batch"])):
            if len(batch) > 1:  # one alone has no spread to normalise by
                with torch.enable_grad():
                    loss = F.cross_entropy(linear(norm(v[batch])), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        linear.bias += linear.weight @ (norm.bias - gain * norm.running_mean)
        linear.weight *= gain
    return linear.requires_grad_(False)
