"""Energy-bounded training: a gap of energy between what is known and outliers that are at hand.

Two hinges press the energy of training images below one margin and that of outliers above another; the softmax, which
does not see a shift of all logits, is left free. Score with `energy`.

Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, arXiv:2010.03759, equations 7 and 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import Objective, Paper
from holdfast.models import predict
from holdfast.run import Run
from holdfast.training import Step

__all__ = ["EnergyBounded", "energy_margins", "hinges"]

_GAP = 10.0


@dataclass(frozen=True, kw_only=True)
class EnergyBounded(
    Objective,
    id="energy-bounded",
    title="Energy-bounded training",
    paper=Paper(title="Energy-based Out-of-distribution Detection", arxiv="2010.03759", venue="NeurIPS", year=2020),
):
    """Cross-entropy, and squared hinges on the energies of training images and of outliers.

    Meant for fine-tuning. The margins depend on how large a model's logits are: the defaults, the paper's for CIFAR-10,
    suit wide networks with large ones. `energy_margins` measures a model.

    Args:
        weight: of the hinges.
        m_in: training images are pressed below this energy.
        m_out: outliers are pressed above this one; it must not be below `m_in`.
        ratio: outliers per training image in a batch; the paper takes 2.
    """

    companions: ClassVar[tuple[str, ...]] = ("outliers",)

    weight: Annotated[float, Field(ge=0)] = 0.1
    m_in: float = -23.0
    m_out: float = -5.0
    ratio: Annotated[float, Field(gt=0, le=16)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m_out < self.m_in:
            raise UserError(f"{self.id}: m_out must be at least m_in = {self.m_in:g}, got {self.m_out:g}.")

    def companion_size(self, name: str, count: int) -> int:
        """`ratio` outliers per image."""
        return max(1, round(self.ratio * count))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The loss of the batch (x, y) and of its outliers."""
        logits = model(torch.cat([x, step.companions["outliers"].x])).float()
        known, unknown = logits[: len(x)], logits[len(x) :]
        return F.cross_entropy(step.seen(known), y) + self.weight * hinges(known, unknown, self.m_in, self.m_out)


def hinges(known: Float[Tensor, "n k"], unknown: Float[Tensor, "m k"], m_in: float, m_out: float) -> Tensor:
    """How far energies are on the wrong side of the margins, squared: the mean over each group, summed."""
    too_high = F.relu(-known.logsumexp(1) - m_in)
    too_low = F.relu(m_out + unknown.logsumexp(1))
    return too_high.square().mean() + too_low.square().mean()


def energy_margins(model: nn.Module, images: Images, *, run: Run) -> tuple[float, float]:
    """Margins for a trained model: the mean energy of in-distribution images, and 10 above it."""
    m_in = -float(predict(model, images, run=run).double().logsumexp(1).mean())
    return m_in, m_in + _GAP
