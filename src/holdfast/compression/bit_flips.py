"""Bit flips in stored weights: what failing memory, radiation or a rowhammer attack does to a model.

Fault model: every stored bit of every weight flips independently with the same rate (Hoang et al., "FT-ClipAct:
Resilience Analysis of Deep Neural Networks and Improving their Fault Tolerance using Clipped Activation", DATE 2020,
arXiv:1912.00941). One flip of a high exponent bit turns 0.5 into 1.7e38. Bits are addressed by one number over all
parameters in order, biases and normalisation weights included; buffers are outside the fault model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from holdfast.errors import UserError

__all__ = ["Bit", "WorstFlip", "draw_bits", "draw_exponent_bits", "flip_bits", "flipped", "locate", "worst_flip"]

_WORDS = {
    # dtype: (an integer type of the same width, lowest and highest bit of the exponent)
    torch.float64: (torch.int64, 52, 62),
    torch.float32: (torch.int32, 23, 30),
    torch.float16: (torch.int16, 10, 14),
    torch.bfloat16: (torch.int16, 7, 14),
}


@dataclass(frozen=True)
class Bit:
    """One stored bit.

    Args:
        parameter: its name in the model.
        index: of the weight, in the flattened parameter.
        bit: 0 is the lowest; of float32, 0..22 are the mantissa, 23..30 the exponent, 31 the sign.
    """

    parameter: str
    index: int
    bit: int


@dataclass(frozen=True)
class WorstFlip:
    """The single flip that hurt most.

    Args:
        bit: where.
        value: what the model scored with it flipped.
        values: the score with each tried flip, in the order drawn.
    """

    bit: Bit
    value: float
    values: tuple[float, ...]


@contextlib.contextmanager
def flip_bits(model: nn.Module, rate: float, *, rng: torch.Generator) -> Iterator[int]:
    """While the block runs, each stored bit of the weights is flipped with probability `rate`; restored exactly after.

    Args:
        model: its weights are changed in place.
        rate: in [0, 0.5], per bit; 1e-7 to 1e-4 is what resilience studies look at.
        rng: a CPU generator; equal states flip equal bits.

    Yields:
        how many bits are flipped.
    """
    bits = draw_bits(model, rate, rng=rng)
    with flipped(model, bits):
        yield len(bits)


def draw_bits(model: nn.Module, rate: float, *, rng: torch.Generator) -> Int64[Tensor, " m"]:
    """Addresses of the bits that flip when each does so independently with probability `rate`, sorted.

    Drawn in time proportional to the number of flips: first how many (binomial), then which (uniformly, all different).

    Raises:
        UserError: the rate is out of range, or a parameter is of a type whose bits are not known.
    """
    if not 0 <= rate <= 0.5:
        raise UserError(f"bit flips: rate must be in [0, 0.5], got {rate!r}.")
    total = sum(parameter.numel() * width for _, parameter, width in _layout(model))
    # Scalars in float64: float32 could not tell the counts of a large model apart.
    count = int(torch.binomial(torch.tensor(float(total), dtype=torch.float64), torch.tensor(rate).double(), rng))
    return _distinct(total, count, rng)


def draw_exponent_bits(model: nn.Module, count: int, *, rng: torch.Generator) -> Int64[Tensor, " m"]:
    """Addresses of `count` different exponent bits, each equally likely, sorted; all of them if there are fewer."""
    layout = [(start, p.numel(), width, *_WORDS[p.dtype][1:]) for start, p, width in _layout(model)]
    sizes = torch.tensor([numel * (high - low + 1) for _, numel, _, low, high in layout])
    ends = sizes.cumsum(0)
    total = int(sizes.sum())
    chosen = _distinct(total, min(count, total), rng)
    which = torch.searchsorted(ends, chosen, right=True)
    place = chosen - (ends - sizes)[which]
    start, _, width, low, high = torch.tensor(layout).reshape(-1, 5)[which].T
    exponents = high - low + 1
    return start + place // exponents * width + low + place % exponents


@contextlib.contextmanager
@torch.no_grad()
def flipped(model: nn.Module, bits: Int64[Tensor, " m"]) -> Iterator[None]:
    """While the block runs, the given bits of the weights are flipped; afterwards every weight is bit-identical again.

    Args:
        model: its weights are changed in place, in whatever memory layout they have.
        bits: different addresses, from `draw_bits` or `draw_exponent_bits`.
    """
    undo: list[tuple[Tensor, Tensor, Tensor]] = []
    bits = bits.sort().values
    try:
        for start, parameter, width in _layout(model):
            end = start + parameter.numel() * width
            low, high = torch.searchsorted(bits, torch.tensor([start, end])).tolist()
            if low == high:
                continue
            local = bits[low:high] - start
            places, owner = torch.unique_consecutive(local // width, return_inverse=True)
            # Several flips of one weight: their powers of two differ, hence adding is or-ing.
            flips = torch.zeros_like(places).index_add_(0, owner, torch.ones_like(local) << local % width)
            words = parameter.detach().view(_WORDS[parameter.dtype][0])
            places = places.to(words.device)
            before = words.take(places)
            undo.append((words, places, before))
            words.put_(places, before ^ _narrow(flips, words.dtype).to(words.device))
        yield
    finally:
        for words, places, before in undo:
            words.put_(places, before)


def locate(model: nn.Module, address: int) -> Bit:
    """Name the bit at an address."""
    for (start, parameter, width), (name, _) in zip(_layout(model), model.named_parameters(), strict=True):
        if address < start + parameter.numel() * width:
            return Bit(name, (address - start) // width, (address - start) % width)
    raise IndexError(f"the model has no bit at address {address}")


def worst_flip(
    model: nn.Module, score: Callable[[nn.Module], float], *, count: int = 500, rng: torch.Generator
) -> WorstFlip:
    """Flip `count` random exponent bits, one at a time, and return the one that lowers the score most.

    Args:
        model: restored exactly.
        score: for example the accuracy on some images; NaN counts as the worst.
        count: number of bits to try, each with one call of `score`.
        rng: a CPU generator.
    """
    bits = draw_exponent_bits(model, count, rng=rng)
    values = []
    for bit in bits:
        with flipped(model, bit[None]):
            values.append(float(score(model)))
    worst = min(range(len(values)), key=lambda i: (values[i] == values[i], values[i]))
    return WorstFlip(locate(model, int(bits[worst])), values[worst], tuple(values))


def _layout(model: nn.Module) -> Iterator[tuple[int, nn.Parameter, int]]:
    """Each parameter with the address of its first bit and the number of bits of each weight."""
    start = 0
    for name, parameter in model.named_parameters():
        if parameter.dtype not in _WORDS:
            raise UserError(f"bit flips: parameter {name!r} is of type {parameter.dtype}; only floats are known.")
        width = parameter.element_size() * 8
        yield start, parameter, width
        start += parameter.numel() * width


def _distinct(total: int, count: int, rng: torch.Generator) -> Tensor:
    """`count` different numbers below `total`, every set equally likely, sorted.

    Uniform draws until enough differ: which numbers have come up by then is symmetric in all of them, and memory grows
    with `count`, not with `total`. When a large part is wanted, the last missing ones would be long in coming.
    """
    if count > total // 4:
        return torch.randperm(total, generator=rng)[:count].sort().values
    chosen = torch.empty(0, dtype=torch.int64)
    while len(chosen) < count:
        more = torch.randint(total, (count - len(chosen),), generator=rng)
        chosen = torch.cat([chosen, more]).unique()
    return chosen


def _narrow(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The low bits of int64 as a narrower signed integer (bit 31 of int32 is its sign)."""
    width = torch.iinfo(dtype).bits
    if width == 64:
        return value
    half = 1 << (width - 1)
    return ((value + half) % (1 << width) - half).to(dtype)
