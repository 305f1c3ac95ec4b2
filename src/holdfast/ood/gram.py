"""Gram matrices: an anomaly's channels fire together in ways that no training image of the predicted class showed.

Row sums of Gram matrices of a layer's maps, raised to several powers, must lie between the least and the largest value
seen in training for the predicted class; how far they lie outside, relative to the bound, is added up over rows, powers
and layers. Only the two bounds are kept, and no Gram matrix is ever made: the row sums of ``A A^T`` are A times the sum
of its rows.

Sastry and Oore, "Detecting Out-of-Distribution Examples with Gram Matrices", ICML 2020, arXiv:1912.12510.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import Paper
from holdfast.models import Seen, extract
from holdfast.models.stages import as_rows, stages
from holdfast.ood.network import NetworkDetector, Watch
from holdfast.run import Run

__all__ = ["Gram"]

_HELD_OUT = 0.1  # of the training images: they give the layers' usual deviation
_AT_ONCE = 2**20  # numbers of a map: all powers of them are taken while they are in the cache


@dataclass(frozen=True, kw_only=True)
class Gram(
    NetworkDetector,
    id="gram",
    title="Gram matrices",
    paper=Paper(
        title="Detecting Out-of-Distribution Examples with Gram Matrices",
        arxiv="1912.12510",
        venue="ICML",
        year=2020,
    ),
):
    """Gram matrices outside the range of the predicted class mark an anomaly.

    Training images are grouped by the class that the model predicts, as those to be scored are. A class that is
    predicted for none of them takes the range of all classes. The fit passes over the training images once.

    Args:
        powers: the maps are raised to the powers 1 to this one. The paper takes 10; five do almost as well at half the
            cost.
        maps: names of the layers to look at. By default the ends of the network's stages; the paper looks at the
            output of every convolution and activation.
    """

    needs_fit: ClassVar[bool] = True

    powers: Annotated[int, Field(ge=1, le=10)] = 5
    maps: tuple[str, ...] = ()

    def layers(self, model: nn.Module) -> Sequence[str]:
        """The layers named, or the ends of the stages.

        Raises:
            UserError: none are named, and the model has no maps.
        """
        names = self.maps or tuple(stages(model))
        if not names:
            raise UserError("gram looks at maps inside of the model, but found none; name layers in 'maps'.")
        return names

    def fit_images(self, model: nn.Module, images: Images, *, run: Run) -> dict[str, Tensor]:
        """The range of each row sum for each predicted class, and each layer's mean deviation on held-out images."""
        layers = self.layers(model)
        held = torch.randperm(len(images), generator=Run().rng("gram held out"))[: int(_HELD_OUT * len(images))]
        kept = torch.ones(len(images), dtype=torch.bool)
        kept[held] = False
        ranges = _Ranges(self, layers)
        extract(model, images.select(kept), run=run, probes={"ranges": ranges})
        state = ranges.state()
        usual = torch.zeros(len(layers), dtype=torch.float64)
        if len(held):
            seen = extract(
                model, images.select(~kept), run=run, probes={"deviations": _Deviations(self, state, layers)}
            )
            usual = seen.observed["deviations"].double().mean(0)
        # A layer in which no held-out image leaves its range counts as it is.
        state["usual"] = torch.where(usual > 0, usual, torch.ones_like(usual))
        return state

    def observe(self, seen: Seen, state: Mapping[str, Tensor]) -> Float[Tensor, "n 1"]:
        """The total deviation: the layers' deviations, each divided by its mean on held-out images."""
        usual = state["usual"].to(seen.x.device, torch.float32)
        return (self.deviations(seen, state) / usual).sum(1, keepdim=True)

    def deviations(self, seen: Seen, state: Mapping[str, Tensor]) -> Float[Tensor, "n l"]:
        """How far each image leaves the range of its predicted class in each layer, divided by its confidence."""
        predicted, confidence = seen.logits.argmax(1), seen.logits.softmax(1).amax(1)
        found = []
        for index, maps in enumerate(seen.layers.values()):
            sums = row_sums(maps, self.powers)
            low, high = (state[f"{bound} {index}"].to(sums.device)[predicted] for bound in ("low", "high"))
            below = (low - sums).relu_() / (low + 1e-6).abs()
            above = (sums - high).relu_() / (high + 1e-6).abs()
            found.append((below + above).sum(1) / confidence)
        return torch.stack(found, dim=1)


def row_sums(maps: Tensor, powers: int) -> Float[Tensor, "n m"]:
    """Row sums of the Gram matrices of maps raised to the powers 1 to `powers`, and of each its signed root.

    With F (C, P) the map of an image, ``sum_j (F^p (F^p)^T)_ij`` to the power 1/p, in the order p, i.

    Args:
        maps: (N, C, H, W), or tokens (N, T, C).
        powers: at least 1.
    """
    rows = as_rows(maps)
    size = max(1, _AT_ONCE // rows[0].numel())
    return torch.cat([torch.cat(list(_row_sums(part.float(), powers)), dim=1) for part in rows.split(size)])


def _row_sums(rows: Float[Tensor, "n p c"], powers: int) -> Iterator[Float[Tensor, "n c"]]:
    # The result is homogeneous of degree 2, and high powers of numbers near 1 neither overflow nor vanish.
    scale = rows.square().mean((1, 2), keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    unit = rows / scale
    power, ones = unit.clone(), unit.new_ones(rows.shape[2])
    for p in range(1, powers + 1):
        if p > 1:
            power *= unit
        sums = torch.bmm((power @ ones)[:, None], power)[:, 0]
        yield sums.sign() * sums.abs().pow(1 / p) * scale[:, 0].square()


@dataclass
class _Ranges:
    """A probe that keeps the least and the largest row sum of each predicted class."""

    method: Gram
    layers: Sequence[str]
    low: dict[int, Tensor] = field(default_factory=dict)
    high: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, seen: Seen) -> None:
        predicted = seen.logits.argmax(1)
        for index, maps in enumerate(seen.layers.values()):
            sums = row_sums(maps, self.method.powers)
            if index not in self.low:
                self.low[index] = sums.new_full((seen.logits.shape[1], sums.shape[1]), torch.inf)
                self.high[index] = -self.low[index]
            place = predicted[:, None].expand_as(sums)
            self.low[index].scatter_reduce_(0, place, sums, "amin")
            self.high[index].scatter_reduce_(0, place, sums, "amax")

    def state(self) -> dict[str, Tensor]:
        found = {}
        for index, (low, high) in enumerate(zip(self.low.values(), self.high.values(), strict=True)):
            never = torch.isinf(low)
            found[f"low {index}"] = torch.where(never, low.amin(0), low).cpu()
            found[f"high {index}"] = torch.where(never, high.amax(0), high).cpu()
        return found


class _Deviations(Watch):
    """A probe that keeps each layer's deviation."""

    method: Gram

    def __call__(self, seen: Seen) -> Tensor:
        return self.method.deviations(seen, self.state)
