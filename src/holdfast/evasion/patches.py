"""What Square proposes: for l_inf squares of constant colour, for l_2 and l_1 pairs of bumps.

The best perturbations in l_inf use all of the radius in every pixel, so a square is set to one corner of the ball. In
l_2 and l_1 the radius is shared by all pixels: what one window is given is taken from another, and it is spent on
smooth bumps, half of them up and half of them down, which filters of a network respond to.

Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 2 and 3 and section 3.4; for l_1 Croce & Hein, ICML 2021,
arXiv:2103.01208, section 4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from holdfast.evasion.balls import Norm, project
from holdfast.evasion.pool import State
from holdfast.run import uniform_at

__all__ = ["Bumps", "Proposals", "Squares", "bump", "squares"]

_ITERATION = 0x2545F4914F6CDD1D  # odd: keeps the random numbers of an item's iterations apart
_TINY = 1e-12


class Proposals(ABC):
    """Draws the next point of each item, given the best so far.

    Args:
        eps: radius.
        norm: of the ball.
        seed: of the stream of random numbers.
        sides: of the windows in pixels, by iteration; the first query is not one of them.
    """

    def __init__(self, eps: float, norm: Norm, seed: int, sides: Int64[Tensor, " i"]):
        self.eps, self.norm, self.seed, self.sides = eps, norm, seed, sides

    @abstractmethod
    def begin(self, fresh: State) -> None:
        """Get ready for items that start; may add to their state."""

    def __call__(self, state: State) -> Float[Tensor, "n c h w"]:
        """The next point of each item: a start at first, then one change of ``best`` at a time."""
        numbers = uniform_at(self.seed, state["key"] + state["step"] * _ITERATION, state["x0"].shape[1] + 5)
        proposal = self.change(state, numbers, (state["step"] - 1).clamp_min(0))
        first = (state["step"] == 0).nonzero().squeeze(1)
        if len(first):
            proposal[first] = self.start({name: values[first] for name, values in state.items()})
        return proposal

    @abstractmethod
    def start(self, state: State) -> Float[Tensor, "n c h w"]:
        """The first point."""

    @abstractmethod
    def change(
        self, state: State, numbers: Float[Tensor, "n k"], iteration: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """A new tensor; `numbers` are uniform, as many per item as there are channels and 5 more."""

    def corner(
        self, numbers: Float[Tensor, "n 2"], side: Int64[Tensor, " n"], height: int, width: int
    ) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
        """Top and left of a square at a random place.

        Drawn from 0..w-s inclusive, as in the paper; the reference code leaves the last row and column out.
        """
        top, left = ((numbers[:, i] * (length - side + 1)).long() for i, length in ((0, height), (1, width)))
        return top, left

    def window(
        self, numbers: Float[Tensor, "n 2"], side: Int64[Tensor, " n"], height: int, width: int
    ) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"], Bool[Tensor, "n 1 h w"]]:
        """Corner and mask of a square at a random place."""
        top, left = self.corner(numbers, side, height, width)
        return top, left, squares(top, left, side, height, width)


class Squares(Proposals):
    """For l_inf: vertical stripes, then squares of plus or minus eps in each channel."""

    def begin(self, fresh: State) -> None:
        """Bound the ball."""
        fresh["low"], fresh["high"] = (fresh["x0"] - self.eps).clamp_(0, 1), (fresh["x0"] + self.eps).clamp_(0, 1)

    def start(self, state: State) -> Float[Tensor, "n c h w"]:
        """Stripes."""
        _, channels, _, width = state["x0"].shape
        up = uniform_at(self.seed, state["key"], channels * width).view(-1, channels, 1, width) < 0.5
        return torch.where(up, state["high"], state["low"])

    def change(
        self, state: State, numbers: Float[Tensor, "n k"], iteration: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """One square, never one that is there already.

        Only the squares' own pixels are touched: late in the search they are a hundredth of the image.
        """
        count, channels, height, width = state["best"].shape
        side = self.sides[iteration]
        top, left = self.corner(numbers[:, :2], side, height, width)
        # As many pixels in each row as the largest square has; smaller ones repeat their last.
        reach = torch.minimum(torch.arange(int(side.max()), device=side.device), side[:, None] - 1)
        image = torch.arange(count, device=side.device)[:, None, None] * height
        where = ((image + (top[:, None] + reach)[:, :, None]) * width + (left[:, None] + reach)[:, None, :]).flatten()
        best = _pixels(state["best"])
        old, low, high = (
            pixels.index_select(0, where).view(count, -1, channels)
            for pixels in (best, _pixels(state["low"]), _pixels(state["high"]))
        )
        up = numbers[:, None, 2 : 2 + channels] < 0.5
        new = torch.where(up, high, low)
        # At most one pattern of signs leaves the square as it is; a row that drew it draws among the others.
        same = (new == old).flatten(1).all(1).nonzero().squeeze(1)
        if len(same):
            other = up[same] ^ _nonzero_bits(numbers[same, 2 + channels], channels)[:, None]
            new[same] = torch.where(other, high[same], low[same])
        changed = best.clone(memory_format=torch.contiguous_format).index_copy_(0, where, new.view(-1, channels))
        return changed.view(count, height, width, channels).permute(0, 3, 1, 2)


class Bumps(Proposals):
    """For l_2 and l_1: tiles of bumps, then one more bump at a time, paid for by another window."""

    def begin(self, fresh: State) -> None:
        """Draw all bumps that will be needed, upright and turned."""
        if hasattr(self, "bank"):
            return
        height, width = fresh["x0"].shape[2:]
        kinds, self.kind = self.sides.unique(return_inverse=True)
        upright = [bump(int(side), self.norm) for side in kinds]
        both = [_padded(pattern, height, width) for one in upright for pattern in (one, one.T)]
        self.bank = torch.stack(both).flatten(1).to(fresh["x0"].device)

    def start(self, state: State) -> Float[Tensor, "n c h w"]:
        """A grid of bumps, five by five on a square image."""
        x0 = state["x0"]
        count, channels, height, width = x0.shape
        side = max(1, min(height, width) // 5)
        down, across = height // side, width // side
        numbers = uniform_at(self.seed, state["key"], down * across * (channels + 1)).view(
            count, channels + 1, down, across
        )
        sign = torch.where(numbers < 0.5, 1.0, -1.0)[..., None, None]
        one = bump(side, self.norm).to(x0.device)
        tiles = torch.where(sign[:, :1] > 0, one, one.T) * sign[:, 1:]
        grid = tiles.transpose(3, 4).reshape(count, channels, down * side, across * side)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        offset = torch.zeros_like(x0)
        offset[:, :, top : top + down * side, left : left + across * side] = grid
        return self._within(x0, offset)

    def change(
        self, state: State, numbers: Float[Tensor, "n k"], iteration: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """Add a bump in one window, empty another one, and give what is left of the radius to the first."""
        x0, offset = state["x0"], state["best"] - state["x0"]
        height, width = x0.shape[2:]
        side = self.sides[iteration]
        top, left, here = self.window(numbers[:, :2], side, height, width)
        _, _, there = self.window(numbers[:, 2:4], side, height, width)
        sign = torch.where(numbers[:, 5:] < 0.5, 1.0, -1.0)[:, :, None, None]
        old = offset * here
        new = old / _by_channel(old, self.norm).clamp_min(_TINY)
        new += self._placed(2 * self.kind[iteration] + (numbers[:, 4] < 0.5), top, left, height, width) * sign
        new *= self._budget(offset, here | there) / _by_channel(new, self.norm).clamp_min(_TINY)
        return self._within(x0, torch.where(here, new, offset.masked_fill(there, 0)))

    def _budget(self, offset: Tensor, windows: Tensor) -> Float[Tensor, "n c 1 1"]:
        """The norm that each channel of the new window may have: that of both windows, and what was not used yet."""
        channels, inside = offset.shape[1], _by_channel(offset * windows, self.norm)
        whole = _by_channel(offset, self.norm)
        if self.norm == "l1":
            unused = (self.eps - whole.sum(1, keepdim=True)).clamp_min(0)
            return unused + inside * channels  # more than there is; the projection shares it out, as the authors do
        unused = (self.eps**2 - whole.square().sum(1, keepdim=True)).clamp_min(0)
        return (unused / channels + inside.square()).sqrt()

    def _within(self, x0: Tensor, offset: Tensor) -> Tensor:
        """The point of the ball in the offset's direction; for l_1 the nearest one."""
        if self.norm == "l2":
            length = torch.linalg.vector_norm(offset.flatten(1), dim=1).clamp_min(_TINY)
            offset = offset * (self.eps / length)[:, None, None, None]
        return project(x0 + offset, x0, self.eps, self.norm)

    def _placed(self, kind: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Float[Tensor, "n 1 h w"]:
        """The bumps of the bank with their corners at the given places."""
        rows = (torch.arange(height, device=top.device) - top[:, None]) % height
        columns = (torch.arange(width, device=left.device) - left[:, None]) % width
        index = (rows * width)[:, :, None] + columns[:, None, :]
        return self.bank[kind].gather(1, index.flatten(1)).view(-1, 1, height, width)


def squares(
    top: Int64[Tensor, " n"], left: Int64[Tensor, " n"], side: Int64[Tensor, " n"], height: int, width: int
) -> Bool[Tensor, "n 1 h w"]:
    """Masks of one square each, from the position of its corner and its side, in pixels."""
    rows = torch.arange(height, device=top.device)
    columns = torch.arange(width, device=top.device)
    vertical = (rows >= top[:, None]) & (rows < (top + side)[:, None])
    horizontal = (columns >= left[:, None]) & (columns < (left + side)[:, None])
    return vertical[:, None, :, None] & horizontal[:, None, None, :]


def bump(side: int, norm: Norm) -> Float[Tensor, "s s"]:
    """A window of norm 1: its upper half a bump, its lower half a hollow."""
    upper = _pyramid(side // 2, side, norm)
    lower = _pyramid(side - side // 2, side, norm)
    whole = torch.cat([upper, -lower])
    return whole / _size(whole, norm)


def _pyramid(rows: int, columns: int, norm: Norm) -> Tensor:
    """Rectangles one upon the other, each a pixel wider all around and lower: in step k by 1/k^2, for l_1 by 1/k^4."""
    if not rows:
        return torch.zeros(0, columns)
    down = (torch.arange(rows) - rows // 2).abs()
    across = (torch.arange(columns) - columns // 2).abs()
    ring = torch.maximum(down[:, None], across[None, :])
    steps = torch.arange(1, max(rows, columns) // 2 + 2).float() ** (-4 if norm == "l1" else -2)
    height = steps.flip(0).cumsum(0).flip(0)[ring]
    return height / _size(height, norm)


def _size(window: Tensor, norm: Norm) -> Tensor:
    return window.abs().sum() if norm == "l1" else torch.linalg.vector_norm(window)


def _by_channel(offset: Tensor, norm: Norm) -> Float[Tensor, "n c 1 1"]:
    if norm == "l1":
        return offset.abs().sum((2, 3), keepdim=True)
    return torch.linalg.vector_norm(offset, dim=(2, 3), keepdim=True)


def _pixels(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "p c"]:
    """One row per pixel; of channels-last images a view."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def _padded(window: Tensor, height: int, width: int) -> Tensor:
    return F.pad(window, (0, width - window.shape[1], 0, height - window.shape[0]))


def _nonzero_bits(uniforms: Tensor, count: int) -> Tensor:
    """One of the patterns of `count` bits that are not all zero, drawn uniformly (beyond 16 bits, of the first 16)."""
    drawn = min(count, 16)
    number = 1 + (uniforms * (2**drawn - 1)).long()
    bits = (number[:, None] >> torch.arange(drawn, device=uniforms.device)) & 1
    return F.pad(bits, (0, count - drawn)).bool()
