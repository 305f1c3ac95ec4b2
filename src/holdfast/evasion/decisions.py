"""What decision-based attacks share: asking for the predicted class within a budget, a start, the way to the boundary.

Such an attack sees no more of a model than which class it predicts. It starts from any image that is adversarial,
however far, and comes nearer.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from holdfast.evasion.balls import Norm
from holdfast.evasion.minimal import Task
from holdfast.run import uniform_at

__all__ = ["Decisions", "normal_offsets", "stream", "towards", "uniform_offsets"]

_STREAM = 0x369DEA0F31A53F85  # odd, 63 bits: keeps the random numbers of a sample's draws apart
_DRAWS = 1000  # noise images tried as a start
_FINEST = 2.0**-22  # a share of the way below which float32 points hardly differ
_LEVELS = 4096  # of the coarse random numbers; two come from one hash


class Decisions:
    """Answers whether points are adversarial, by the predicted class alone, and counts.

    Args:
        task: the samples.
        budget: questions per sample.
    """

    def __init__(self, task: Task, budget: int):
        self.task, self.budget = task, budget

    def left(self, rows: Int64[Tensor, " m"]) -> Int64[Tensor, " m"]:
        """How many questions samples have left."""
        return self.budget - self.task.queries[rows]

    def ask(self, points: Float[Tensor, "m c h w"], rows: Int64[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """Whether points are adversarial; `rows` says of which samples they are, and may name one repeatedly."""
        task = self.task
        task.queries.index_add_(0, rows, torch.ones_like(rows))
        task.ticker.advance(len(rows) / self.budget)
        return task.fooled(task.oracle.logits(points), rows)

    def start(self) -> tuple[Float[Tensor, "m c h w"], Int64[Tensor, " m"]]:
        """An adversarial image for each sample, and the samples for which there is one.

        They are noise: uniform and independent at first, then also in blocks of 2, 4, ... pixels, up to images of one
        colour. Networks take fine noise for one class whatever it is, and coarse noise for many.
        """
        task = self.task
        points, rows = task.x0.clone(), torch.arange(len(task), device=task.y.device)
        found = torch.zeros_like(rows, dtype=torch.bool)
        channels, height, width = points.shape[1:]
        sides = [2**k for k in range(max(height, width).bit_length())]
        for draw in range(_DRAWS):
            rows = rows[self.left(rows) > 0]
            if not len(rows):
                break
            side = sides[draw % len(sides)]
            grid = (-(-height // side), -(-width // side))
            numbers = uniform_at(task.seed, stream(task.key[rows], -1 - draw), channels * grid[0] * grid[1])
            noise = numbers.view(-1, channels, *grid).repeat_interleave(side, 2).repeat_interleave(side, 3)
            noise = noise[:, :, :height, :width].contiguous(memory_format=torch.channels_last)
            hit = self.ask(noise, rows)
            task.offer(noise, hit, rows)
            points[rows[hit]], found[rows[hit]] = noise[hit], True
            rows = rows[~hit]
        rows = found.nonzero().squeeze(1)
        return points[rows], rows

    def to_boundary(
        self, points: Float[Tensor, "m c h w"], rows: Int64[Tensor, " m"], tolerance: float
    ) -> Float[Tensor, "m c h w"]:
        """Bring adversarial points back to the boundary by bisection, ending on its adversarial side.

        Args:
            points: adversarial.
            rows: their samples, each at most once.
            tolerance: the search ends when it knows the share of the way to go to within this.
        """
        task, points = self.task, points.clone()
        origin, end = task.x0[rows], points.clone()
        high = torch.ones(len(rows), device=points.device)
        low = torch.zeros_like(high)
        while True:
            middle = (low + high) / 2
            wanted = (high - low > max(tolerance, _FINEST)) & (self.left(rows) > 0)
            at = wanted.nonzero().squeeze(1)
            if not len(at):
                break
            trial = towards(origin[at], end[at], middle[at], task.norm)
            hit = self.ask(trial, rows[at])
            high[at[hit]], low[at[~hit]] = middle[at[hit]], middle[at[~hit]]
            points[at[hit]] = trial[hit]
        task.offer(points, torch.ones_like(rows, dtype=torch.bool), rows)
        return points


def towards(
    origin: Float[Tensor, "n c h w"], end: Float[Tensor, "n c h w"], share: Float[Tensor, " n"], norm: Norm
) -> Float[Tensor, "n c h w"]:
    """Points at a share of the distance from `origin` to `end`: on the line for l_2, else `end` clipped to a cube."""
    share = share.view(-1, 1, 1, 1)
    if norm == "l2":
        return torch.lerp(origin, end, share)
    radius = share * (end - origin).abs().amax((1, 2, 3), keepdim=True)
    return torch.maximum(torch.minimum(end, origin + radius), origin - radius)


def stream(keys: Int64[Tensor, " n"], number: int | Tensor) -> Int64[Tensor, ...]:
    """Keys for the random numbers of one draw of several: draws from 0 for the walk, negative ones for the start."""
    return keys + torch.as_tensor(number, device=keys.device) * _STREAM  # a tensor's product wraps around


def normal_offsets(seed: int, keys: Int64[Tensor, " n"], like: Float[Tensor, "m c h w"]) -> Float[Tensor, "n c h w"]:
    """Normal numbers that depend on (`seed`, key) alone, shaped as the images `like`; quantised to 4,096 levels."""
    middles = (torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS
    return _drawn(seed, keys, like, (2 * middles - 1).erfinv() * math.sqrt(2))


def uniform_offsets(seed: int, keys: Int64[Tensor, " n"], like: Float[Tensor, "m c h w"]) -> Float[Tensor, "n c h w"]:
    """The same with uniform numbers in (-1, 1)."""
    return _drawn(seed, keys, like, (2 * torch.arange(_LEVELS, dtype=torch.float64) + 1) / _LEVELS - 1)


def _drawn(seed: int, keys: Tensor, like: Tensor, quantiles: Tensor) -> Tensor:
    channels, height, width = like.shape[1:]
    count = channels * height * width
    # Of the 24 random bits of a number, twelve choose one quantile and twelve another: hashing is what costs.
    bits = (uniform_at(seed, keys, -(-count // 2)) * _LEVELS**2).int()
    index = torch.cat([bits // _LEVELS, bits % _LEVELS], 1)[:, :count]
    # Channels come last in memory, as they do in the points these are added to.
    return quantiles.to(like)[index].view(-1, height, width, channels).permute(0, 3, 1, 2)
