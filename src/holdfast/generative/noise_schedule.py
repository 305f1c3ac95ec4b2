"""How much noise there is at each time, and the three ways to say what is under it.

At time t an image x0 in [-1, 1] has become ``x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) e`` with e standard normal. Times
are whole numbers from 0, the image itself, to T, nearly noise alone. Of x0, e and the velocity v any one and x_t give
the others, so a network may predict whichever is easiest to learn.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv:2006.11239 (linear); Nichol & Dhariwal,
"Improved Denoising Diffusion Probabilistic Models", ICML 2021, arXiv:2102.09672 (cosine); Jabri et al., "Scalable
Adaptive Computation for Iterative Generation", ICML 2023, arXiv:2212.11972 (sigmoid); Salimans & Ho, "Progressive
Distillation", ICLR 2022, arXiv:2202.00512 (v); Lin et al., "Common Diffusion Noise Schedules and Sample Steps are
Flawed", WACV 2024, arXiv:2305.08891 (zero terminal SNR).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from holdfast.errors import UserError, one_of

__all__ = ["Course", "Estimate", "NoiseSchedule", "Parameterisation", "Spacing", "times"]

Course = Literal["linear", "cosine", "sigmoid", "quadratic"]
Parameterisation = Literal["eps", "x0", "v"]
Spacing = Literal["uniform", "quadratic"]

# The largest share of the signal's power that one step may take, where a course would take all of it.
_MOST = 0.999


class Estimate(NamedTuple):
    """What a network makes of noisy images: the images under the noise, and the noise. Both in the shape of x_t."""

    x0: Tensor
    noise: Tensor


class NoiseSchedule(nn.Module):
    """The share of an image's power that is left at each time, ``abar`` (T + 1,), float64; ``abar[0]`` is 1.

    Args:
        course: ``linear`` and ``quadratic`` run from beta 1e-4 to 0.02 at T = 1000, and through the same noise in fewer
            steps; ``cosine`` and ``sigmoid`` give abar itself.
        steps: T.
        zero_terminal: rescale so that nothing of the image is left at T. The noise then says nothing of the image
            there, so a network must predict v or x0.

    Raises:
        UserError: no such course, or fewer than two steps.
    """

    abar: Float64[Tensor, " t"]

    def __init__(self, course: Course = "linear", steps: int = 1000, *, zero_terminal: bool = False):
        super().__init__()
        if course not in get_args(Course):
            raise one_of("noise schedule", str(course), get_args(Course))
        if steps < 2:
            raise UserError(f"noise schedule: steps must be at least 2, got {steps}.")
        abar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - _betas(course, steps)).cumprod(0)])
        self.register_buffer("abar", without_a_rest(abar) if zero_terminal else abar)

    @classmethod
    def of(cls, abar: Tensor) -> NoiseSchedule:
        """The schedule of another library, by its cumulative products of alpha at times 1 to T.

        Raises:
            UserError: they do not fall from at most 1 to at least 0.
        """
        values = torch.cat([torch.ones(1, dtype=torch.float64), abar.detach().double().cpu().flatten()])
        if not (values.diff() < 0).all() or values[-1] < 0:
            raise UserError("noise schedule: the share of signal must fall from time to time, from below 1 to 0.")
        schedule = cls(steps=len(values) - 1)
        schedule.abar = values
        return schedule

    @property
    def steps(self) -> int:
        """T."""
        return len(self.abar) - 1

    def beta(self, t: int) -> float:
        """The share of power that the step from t - 1 to t takes."""
        return float(1 - self.abar[t] / self.abar[t - 1])

    def signal(self, t: Int64[Tensor, " n"] | int, like: Tensor) -> Tensor:
        """``sqrt(abar_t)``, to be multiplied with images like the given ones."""
        return self._spread(self.abar.sqrt(), t, like)

    def noise(self, t: Int64[Tensor, " n"] | int, like: Tensor) -> Tensor:
        """``sqrt(1 - abar_t)``, likewise."""
        return self._spread((1 - self.abar).sqrt(), t, like)

    def diffuse(self, x0: Tensor, t: Int64[Tensor, " n"] | int, noise: Tensor) -> Tensor:
        """``x_t``, from images in [-1, 1] and standard normal noise."""
        return self.signal(t, x0) * x0 + self.noise(t, x0) * noise

    def target(self, x0: Tensor, t: Int64[Tensor, " n"] | int, noise: Tensor, predicts: Parameterisation) -> Tensor:
        """What a network should give."""
        if predicts == "eps":
            return noise
        return x0 if predicts == "x0" else self.signal(t, x0) * noise - self.noise(t, x0) * x0

    def estimate(
        self, prediction: Tensor, x_t: Tensor, t: Int64[Tensor, " n"] | int, predicts: Parameterisation
    ) -> Estimate:
        """Image and noise from what a network gave for `x_t`."""
        signal, noise = self.signal(t, x_t), self.noise(t, x_t)
        if predicts == "eps":
            return Estimate((x_t - noise * prediction) / signal, prediction)
        if predicts == "x0":
            return Estimate(prediction, (x_t - signal * prediction) / noise)
        return Estimate(signal * x_t - noise * prediction, signal * prediction + noise * x_t)

    def _spread(self, values: Tensor, t: Tensor | int, like: Tensor) -> Tensor:
        picked = values[t].to(like.dtype)
        return picked if picked.ndim == 0 else picked.view(-1, *[1] * (like.ndim - 1))


def times(total: int, count: int, spacing: Spacing = "uniform") -> list[int]:
    """Times to visit, from `total` down to 0: `count` steps between `count` + 1 of them.

    Args:
        total: T of the schedule.
        count: steps, at most T.
        spacing: ``uniform``, or ``quadratic``, which puts more of them where there is little noise.

    Raises:
        UserError: there are not so many times.
    """
    if not 1 <= count <= total:
        raise UserError(f"sampling takes 1 to {total} steps, as many as the model has times, got {count}.")
    power = 1 if spacing == "uniform" else 2
    # Rounding must not visit a time twice.
    return [max(i, round(total * (i / count) ** power)) for i in range(count, -1, -1)]


def without_a_rest(abar: Float64[Tensor, " t"]) -> Float64[Tensor, " t"]:
    """Shift and stretch the root of abar so that it ends in 0 and begins as before (Lin et al., algorithm 1)."""
    root = abar.sqrt()
    first, last = root[1], root[-1]
    rescaled = ((root[1:] - last) * first / (first - last)).square()
    return torch.cat([abar[:1], rescaled])


def _betas(course: Course, steps: int) -> Float64[Tensor, " t"]:
    """The share of power that each step takes."""
    if course in ("linear", "quadratic"):
        low, high = 1e-4 * 1000 / steps, 0.02 * 1000 / steps
        if course == "linear":
            betas = torch.linspace(low, high, steps, dtype=torch.float64)
        else:
            betas = torch.linspace(math.sqrt(low), math.sqrt(high), steps, dtype=torch.float64).square()
        return betas.clamp(max=_MOST)
    part = torch.arange(steps + 1, dtype=torch.float64) / steps
    if course == "cosine":
        left = ((part + 0.008) / 1.008 * (math.pi / 2)).cos().square()
    else:
        left = torch.sigmoid(3 - 6 * part) - torch.sigmoid(torch.tensor(-3.0, dtype=torch.float64))
    left = left / left[0]
    return (1 - left[1:] / left[:-1]).clamp(max=_MOST)
