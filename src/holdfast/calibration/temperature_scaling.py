"""Temperature scaling: divide all logits by one number, learnt on held-out data.

Modern networks are right less often than they say. One temperature, fitted by maximum likelihood, mends most of it and
leaves every prediction as it was.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import scipy  # its modules load on first use
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from holdfast.errors import UserError
from holdfast.methods import Calibrator, Paper

__all__ = ["Temperature", "TemperatureScaling"]


@dataclass(frozen=True)
class Temperature:
    """The map that temperature scaling learns.

    Args:
        value: the temperature; above 1 it lowers confidence.
        at_bound: the likelihood was still rising at the bound that `value` stands at.
    """

    value: float
    at_bound: bool = False

    def __call__(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """The logits divided by the temperature, in float64: in float32 the division could round two into a tie."""
        return logits.double() / self.value


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling(
    Calibrator,
    id="temperature-scaling",
    title="Temperature scaling",
    paper=Paper(title="On Calibration of Modern Neural Networks", arxiv="1706.04599", venue="ICML", year=2017),
):
    """Divide the logits by the temperature that makes held-out labels most likely.

    Args:
        min_temperature: what the temperature stops at when the held-out predictions are all right, so that likelihood
            rises without end.
        max_temperature: what it stops at when the predictions are no better than chance.
    """

    min_temperature: Annotated[float, Field(gt=0)] = 0.01
    max_temperature: Annotated[float, Field(gt=0)] = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_temperature >= self.max_temperature:
            raise UserError(
                f"temperature-scaling: min_temperature must be below max_temperature, got {self.min_temperature:g} "
                f"and {self.max_temperature:g}."
            )

    def fit(self, logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Temperature:
        """Learn the temperature from held-out logits (N, K) and labels (N,).

        The negative log likelihood is convex in ``a = 1 / T``, with derivative ``mean(E_p[z] - z_y)`` where
        ``p = softmax(a z)``: its root is bracketed and found to full precision, with no step size to choose.

        Raises:
            UserError: there are no samples, shapes differ, a label is none of the K, or a logit is not finite.
        """
        _check(logits, y)
        z = logits.detach().double().cpu()
        # Neither likelihood nor its derivative knows a constant per sample; without it nothing overflows.
        z = z - z.amax(dim=1, keepdim=True)
        labelled = z.gather(1, y.cpu()[:, None])

        def slope(a: float) -> float:
            return float(((a * z).softmax(1) * z - labelled / z.shape[1]).sum(1).mean())

        coldest, hottest = 1 / self.min_temperature, 1 / self.max_temperature
        if not z.any():
            return Temperature(1.0)  # equal logits stay equal at every temperature
        if slope(coldest) <= 0:
            return Temperature(self.min_temperature, at_bound=True)
        if slope(hottest) >= 0:
            return Temperature(self.max_temperature, at_bound=True)
        return Temperature(1 / scipy.optimize.brentq(slope, hottest, coldest, xtol=1e-14, rtol=1e-14))


def _check(logits: Tensor, y: Tensor) -> None:
    if logits.ndim != 2 or y.ndim != 1 or len(logits) != len(y):
        raise UserError(
            f"temperature-scaling: logits (N, K) and labels (N,) are needed, got {tuple(logits.shape)} and "
            f"{tuple(y.shape)}."
        )
    if not logits.numel():
        raise UserError("temperature-scaling: there are no held-out samples to learn from.")
    if not torch.isfinite(logits).all():
        raise UserError("temperature-scaling: the logits hold NaN or infinite values.")
    if not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise UserError(
            f"temperature-scaling: labels must lie in 0..{logits.shape[1] - 1}, got {int(y.min())}..{int(y.max())}."
        )
