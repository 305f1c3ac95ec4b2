"""The proof of influence unlearning where its mathematics holds: a convex loss, whose optima are computed exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.data import Images, load_data
from holdfast.data.images import to_float
from holdfast.proofs.lab import Lab
from holdfast.proofs.proof import Measured, proof
from holdfast.unlearning import InfluenceUnlearning

__all__: list[str] = []


@proof(
    method="influence-unlearning",
    claim="For a convex loss, its one step leads most of the way to the retrained optimum.",
    source="Izzo et al. 2021, section 3; threshold ours",
    metric="distance to the retrained weights, after / before",
    better="lower",
    threshold={"smoke": 0.5, "cpu": 0.5},
    note="Multinomial logistic regression with weight decay of 0.1 on 300 digits, of which 20 are forgotten.",
)
def one_step_leads_towards_the_retrained_optimum(lab: Lab) -> Measured:
    """Exact optima by L-BFGS in float64; the step with its default damping."""
    data = load_data("digits", run=lab.run)
    assert data.train is not None
    images = data.train.select(torch.randperm(len(data.train), generator=lab.run.rng("subset"))[:300])
    chosen = torch.arange(300) < 20
    forget, retain = images.select(chosen), images.select(~chosen)
    before, after = _optimum(images), _optimum(retain)
    moved = InfluenceUnlearning(samples=280)(before, forget, retain, run=lab.run)
    return Measured(
        value=_distance(moved, after) / _distance(before, after), baseline=1.0, baseline_name="doing nothing", n=20
    )


def _optimum(images: Images) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(images.shape), images.num_classes)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    x, y = to_float(images.x).double(), images.y
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1000, tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        decay = sum((weight.square().sum() for weight in model.parameters()), torch.zeros(()))
        loss: Tensor = F.cross_entropy(model(x), y) + 0.05 * decay
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.float()


def _distance(a: nn.Module, b: nn.Module) -> float:
    parts = [(p - q).detach().square().sum() for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    return math.sqrt(float(torch.stack(parts).sum()))
