"""The course of the learning rate, by spec: ``one-cycle(warmup=0.3)``, ``cosine``, ``multi-step``, ``constant``.

A schedule is a pure function of how far the training is, so there is nothing of it to save or restore.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from holdfast.methods import Method, Paper

__all__ = ["Constant", "Cosine", "MultiStep", "OneCycle", "Schedule"]

Part = Annotated[float, Field(ge=0, le=1)]


class Schedule(Method, kind="schedule"):
    """The factor on the learning rate over the course of a training."""

    @abstractmethod
    def factor(self, progress: float) -> float:
        """The factor when the share `progress` in [0, 1] of all steps is done."""

    def __call__(self, step: int, total: int) -> float:
        """The factor at step `step` of `total`, counted from 0; steps are taken at their middles, so none is wasted."""
        return self.factor((step + 0.5) / total)


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule, id="constant"):
    """The same learning rate throughout, after an optional linear warm-up.

    Args:
        warmup: share of the training during which the rate rises from 0.
    """

    warmup: Part = 0.0

    def factor(self, progress: float) -> float:
        """1 after the warm-up."""
        return _rise(progress, self.warmup)


@dataclass(frozen=True, kw_only=True)
class Cosine(
    Schedule,
    id="cosine",
    paper=Paper(
        title="SGDR: Stochastic Gradient Descent with Warm Restarts", arxiv="1608.03983", venue="ICLR", year=2017
    ),
):
    """Down along half a cosine, after an optional linear warm-up.

    Args:
        warmup: share of the training during which the rate rises from 0.
        final: factor at the end.
    """

    warmup: Part = 0.0
    final: Part = 0.0

    def factor(self, progress: float) -> float:
        """1 after the warm-up, `final` at the end."""
        if progress < self.warmup:
            return _rise(progress, self.warmup)
        return _fall(progress, self.warmup, self.final, "cosine")


@dataclass(frozen=True, kw_only=True)
class OneCycle(
    Schedule,
    id="one-cycle",
    paper=Paper(
        title="Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates",
        arxiv="1708.07120",
        year=2017,
    ),
):
    """Up from a small rate to the peak, then down to nothing.

    Args:
        warmup: share of the training until the peak.
        start: factor at the beginning.
        final: factor at the end.
        shape: of the way down, ``"cosine"`` or ``"linear"``; the way up is linear.
    """

    warmup: Part = 0.3
    start: Part = 0.04
    final: Part = 0.0
    shape: Literal["cosine", "linear"] = "cosine"

    def factor(self, progress: float) -> float:
        """`start` at the beginning, 1 at the peak, `final` at the end."""
        if progress < self.warmup:
            return self.start + (1 - self.start) * _rise(progress, self.warmup)
        return _fall(progress, self.warmup, self.final, self.shape)


@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule, id="multi-step"):
    """A constant rate that drops at given moments.

    Args:
        at: the moments, as shares of the training.
        gamma: what each drop multiplies the rate by.
        warmup: share of the training during which the rate rises from 0.
    """

    at: tuple[Part, ...] = (0.5, 0.75)
    gamma: Part = 0.1
    warmup: Part = 0.0

    def factor(self, progress: float) -> float:
        """`gamma` to the power of the drops that have passed."""
        return _rise(progress, self.warmup) * self.gamma ** sum(progress >= moment for moment in self.at)


def _rise(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup) if warmup else 1.0


def _fall(progress: float, begin: float, final: float, shape: str) -> float:
    done = (progress - begin) / (1 - begin) if begin < 1 else 1.0
    left = (1 + math.cos(math.pi * done)) / 2 if shape == "cosine" else 1 - done
    return final + (1 - final) * left
