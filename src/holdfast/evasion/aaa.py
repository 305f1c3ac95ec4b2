"""AAA: answer with logits whose margin moves the wrong way, so that attackers who read scores walk away from errors.

The margin between the two largest logits is cut into cells; within each it is mirrored about the cell's centre, the
attractor. What brings the model nearer to an error then looks like the opposite. The predicted class stays, and the
confidence is led to a calibrated value.

Chen et al., "Adversarial Attack on Attackers: Post-Process to Mitigate Black-Box Score-Based Query Attacks", NeurIPS
2022, arXiv:2205.12134, algorithm 1.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast import stats
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.evasion.guard import Guarded
from holdfast.methods import Paper, Surgery
from holdfast.models import predict
from holdfast.run import Run

__all__ = ["AAA", "GuardedByAAA", "fit_temperature"]

_ALPHA = {"linear": 1.0, "sine": 0.7}


@dataclass(frozen=True, kw_only=True)
class AAA(
    Surgery,
    id="aaa",
    title="Adversarial attack on attackers",
    paper=Paper(
        title="Adversarial Attack on Attackers: Post-Process to Mitigate Black-Box Score-Based Query Attacks",
        arxiv="2205.12134",
        venue="NeurIPS",
        year=2022,
    ),
):
    """A guard that mirrors the margin seen from outside, and keeps every label.

    For a served model whose scores are given away. It costs no accuracy and about a hundred cheap steps on the logits
    of each answer, no pass of the model. It is no robustness: attacks that read labels only, that transfer from
    another model or that know the weights are untouched (see `holdfast.evasion.adaptive.informed`), and an attacker
    with scores who suspects it recovers a part with ``bidirectional-square``. In the lowest cell margin and confidence
    cannot both have their way, so the margin is mirrored in part only. The original also rounds images down to 8 bits;
    that is left to whoever serves the model.

    Args:
        tau: width of the cells of the margin, in logits.
        shape: how a cell is mirrored: ``"linear"``, or ``"sine"``, without jumps at the borders of cells.
        alpha: by how much; none takes the paper's 1 (linear) and 0.7 (sine).
        beta: weight of the confidence against the margin.
        temperature: the logits divided by it give the confidence to aim at; see `fit_temperature`.
        iterations: steps of Adam on each answer; 0 leaves the logits as they are.
        lr: of Adam.
    """

    tau: Annotated[float, Field(gt=0)] = 6.0
    shape: Literal["linear", "sine"] = "linear"
    alpha: Annotated[float, Field(ge=0)] | None = None
    beta: Annotated[float, Field(ge=0)] = 5.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    iterations: Annotated[int, Field(ge=0)] = 100
    lr: Annotated[float, Field(gt=0)] = 0.1

    def __call__(self, model: nn.Module) -> GuardedByAAA:
        """The guarded copy of the model."""
        return GuardedByAAA(model, self)

    def target(self, margin: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The margin to be shown instead of each of these."""
        alpha = _ALPHA[self.shape] if self.alpha is None else self.alpha
        # The original writes round(m / tau + 1/2) - 1/2, which at m = 0 rounds to an attractor below 0.
        attractor = (torch.floor(margin / self.tau) + 0.5) * self.tau
        offset = margin - attractor
        if self.shape == "linear":
            return attractor - alpha * offset
        return margin - alpha * self.tau * torch.sin(math.pi * (1 - 2 * offset / self.tau))

    def answer(
        self, logits: Float[Tensor, "n k"], temperature: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n k"]:
        """The logits to be shown, with the same largest entry; each row depends on itself alone.

        Args:
            logits: the model's.
            temperature: of each row; by default the guard's.
        """
        if not self.iterations or logits.shape[1] < 2:
            return logits
        best = logits.topk(2, dim=1)
        top = logits.argmax(1, keepdim=True)  # of equal logits topk may name another than argmax does
        heat = self.temperature if temperature is None else temperature[:, None]
        confidence = (logits / heat).softmax(1).amax(1, keepdim=True)
        margin = self.target(best.values[:, 0] - best.values[:, 1])[:, None]
        shown = self._descend(logits.clone(), top, margin, confidence)
        kept = shown.argmax(1, keepdim=True) == top
        return torch.where(kept, shown, logits)

    def _descend(self, u: Tensor, top: Tensor, margin: Tensor, confidence: Tensor) -> Tensor:
        """Adam on ``|margin(u) - margin| + beta |softmax(u)[top] - confidence|``, a sum over rows.

        The derivative is written out: autograd would cost twice the time, and the caller may have forbidden it.
        """
        one = torch.zeros_like(u).scatter_(1, top, 1.0)
        first, second = torch.zeros_like(u), torch.zeros_like(u)
        for step in range(1, self.iterations + 1):
            p = u.softmax(1)
            best = u.topk(2, dim=1)
            side = torch.sign(best.values[:, :1] - best.values[:, 1:] - margin)
            slope = torch.zeros_like(u).scatter_(1, best.indices, torch.cat([side, -side], 1))
            own = p.gather(1, top)
            slope += self.beta * torch.sign(own - confidence) * own * (one - p)
            first.mul_(0.9).add_(slope, alpha=0.1)
            second.mul_(0.999).addcmul_(slope, slope, value=0.001)
            size = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
            u.addcdiv_(first, size, value=-self.lr / (1 - 0.9**step))
        return u


class GuardedByAAA(Guarded):
    """A model behind AAA. Its logits have no gradient, as those of a served model have none."""

    guard: AAA

    def forward(self, x: Tensor) -> Tensor:
        """The logits that are shown."""
        with torch.no_grad():
            logits = self.model(x)
            return self.guard.answer(logits.float()).to(logits.dtype)


def fit_temperature(
    guard: AAA, model: nn.Module, images: Images, *, run: Run, step: float = 0.001, finalists: int = 20
) -> AAA:
    """The guard with the temperature whose answers are best calibrated on held-out images.

    Tried are t and 1/t for t = step, 2 step, ..., 1, by the ECE with 15 bins of equal width. Guarding all answers at
    each of two thousand temperatures takes minutes, and the guard aims at a confidence that is known without it: that
    one chooses the finalists, and the guarded answers choose among them.

    Args:
        guard: to be completed.
        model: unguarded.
        images: held out; the paper takes 1,000.
        run: device and batch size.
        step: of the scan.
        finalists: temperatures to be tried with the guard in place.

    Raises:
        UserError: there are no images, or `step` is not in (0, 1].
    """
    if not 0 < step <= 1:
        raise UserError(f"fit_temperature: step must be in (0, 1], got {step!r}.")
    logits = predict(model, images, run=run)
    right = (logits.argmax(1) == images.y).numpy()
    scan = np.arange(1, round(1 / step) + 1) * step
    tried = np.unique(np.concatenate([scan, 1 / scan]))
    wanted = [_ece((logits / t).softmax(1), right) for t in tried]
    best = tried[np.argsort(wanted, kind="stable")[:finalists]]
    errors = []
    for t in best:
        rows = torch.full((len(logits),), float(t))
        errors.append(_ece(guard.answer(logits, rows).softmax(1), right))
    return dataclasses.replace(guard, temperature=round(float(best[int(np.argmin(errors))]), 6))


def _ece(probabilities: Tensor, right: np.ndarray) -> float:
    return stats.ece(probabilities.amax(1).numpy(), right, bins=15, equal_mass=False)
