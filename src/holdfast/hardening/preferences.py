"""Learning scores from preferences: how likely one image is liked better than another, and how to fit a model to that.

A score is what people would give an image on average; single ratings scatter around it (Thurstone's model). Two scores
therefore give a probability of preference, and a model is fitted to observed ones by the fidelity loss of Tsai et al.,
"FRank: a ranking method with fidelity loss", SIGIR 2007, which unlike the cross-entropy is 0 where the two agree and
bounded where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.compression import apply_masks
from holdfast.data import Images, to_float
from holdfast.run import Run

__all__ = ["Pairs", "fidelity", "learn", "pairs_of", "preference"]

_SMALL = 1e-8  # under the square roots, whose slope at 0 is infinite


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of images (bytes, or floats in [0, 1]), and the probability that the first is liked better."""

    first: Float[Tensor, "n c h w"]
    second: Float[Tensor, "n c h w"]
    p: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.p)

    def select(self, rows: Int64[Tensor, " m"]) -> Pairs:
        """Some of them."""
        return Pairs(self.first[rows], self.second[rows], self.p[rows])

    def join(self, other: Pairs) -> Pairs:
        """These and others."""
        mine, theirs = (self.first, self.second, self.p), (other.first, other.second, other.p)
        return Pairs(*(torch.cat(both) for both in zip(mine, theirs, strict=True)))


def preference(first: Tensor, second: Tensor, deviation: float) -> Tensor:
    """The probability that the first of two scores is rated higher, where a rating scatters by `deviation`."""
    return torch.special.ndtr((first - second) / (2**0.5 * deviation))


def fidelity(p: Tensor, estimate: Tensor) -> Tensor:
    """The fidelity loss of each estimated probability: 0 where it is right, at most 1."""
    return 1 - (p * estimate + _SMALL).sqrt() - ((1 - p) * (1 - estimate) + _SMALL).sqrt()


def pairs_of(images: Images, scores: Float[Tensor, " n"], count: int, deviation: float, rng: torch.Generator) -> Pairs:
    """Random pairs of rated images."""
    first = torch.randint(len(images), (count,), generator=rng)
    second = (first + torch.randint(1, len(images), (count,), generator=rng)) % len(images)
    p = preference(scores[first], scores[second], deviation).float()
    return Pairs(images.x[first], images.x[second], p)


@torch.enable_grad()
def learn(
    model: nn.Module,
    draw: Callable[[int], Pairs],
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    deviation: float,
    masks: Mapping[str, Tensor] | None = None,
    run: Run,
) -> None:
    """Fit a model of scores, in place, to preferences by Adam; batch norm keeps its statistics, dropout stays off.

    Args:
        model: gives one score per image, on the run's device.
        draw: the pairs of an epoch.
        epochs, batch_size, lr: of Adam; a batch is of pairs.
        deviation: see `preference`.
        masks: pruned weights that stay zero.
        run: device, random streams.
    """
    model.eval()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for epoch in range(epochs):
        pairs = draw(epoch)
        for rows in torch.randperm(len(pairs), generator=run.rng("order", epoch)).split(batch_size):
            batch = pairs.select(rows)
            # Both images in one pass.
            scores = model(to_float(torch.cat([batch.first, batch.second])).to(run.torch_device)).flatten().float()
            first, second = scores.chunk(2)
            loss = fidelity(batch.p.to(scores.device), preference(first, second, deviation)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if masks:
                apply_masks(model, masks)
    optimizer.zero_grad()
