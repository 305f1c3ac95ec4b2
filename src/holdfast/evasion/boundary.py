"""Boundary attack: a random walk along the decision boundary, each step sideways and then a little towards the image.

Sideways steps are normal noise, projected on the sphere around the image; a proposal that is adversarial and nearer is
kept. Both step lengths follow the share of proposals that succeed.

Brendel et al., "Decision-Based Adversarial Attacks: Reliable Attacks Against Black-Box Machine Learning Models",
ICLR 2018, arXiv:1712.04248, algorithm 1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from holdfast.evasion.balls import distance
from holdfast.evasion.decisions import Decisions, normal_offsets, stream
from holdfast.evasion.minimal import MinimalAttack, Task
from holdfast.methods import Paper

__all__ = ["Boundary"]

_START = 1e-3  # tolerance of the bisection that brings noise to the boundary
#: Every few steps the sideways step alone is tried too, and both outcomes are noted; the latest ones decide on a change
#: of step length. The reference code's 10, 100 and 30 adapt once or twice in 2,000 queries; with these numbers, on a
#: network for digits, the median distance after 2,000 queries is 0.47 instead of 0.75.
_EVERY = 5
_SIDEWAYS, _NEARER = 20, 10
_CONVERGED = 1e-7  # step towards the image, as a share of the distance


@dataclass(frozen=True, kw_only=True)
class Boundary(
    MinimalAttack,
    id="boundary",
    title="Boundary attack",
    paper=Paper(
        title="Decision-Based Adversarial Attacks: Reliable Attacks Against Black-Box Machine Learning Models",
        arxiv="1712.04248",
        venue="ICLR",
        year=2018,
    ),
):
    """Boundary attack (l_2): needs the predicted class, nothing else.

    The first of its kind and the plainest: no gradient is estimated, so there is nothing to be misled. It takes ten to
    a hundred times the queries of HopSkipJump for the same distance; use it as a second opinion.

    It starts from noise that the model takes for another class. A target that no noise reaches, in up to 1,000 draws of
    grains from one pixel to the whole image, is given up: such samples are reported as not fooled.

    Args:
        eps: only perturbations up to this norm count; a sample is left alone once it has one. None takes the smallest.
        queries: budget per sample, everything included. The paper spends up to a million.
        sideways_step: length of the first steps on the sphere, as a share of the distance to the image.
        source_step: of the first steps towards the image, likewise.
        adaptation: factor by which step lengths grow and shrink.
    """

    eps: Annotated[float, Field(ge=0)] | None = None
    queries: Annotated[int, Field(ge=1)] = 5000
    sideways_step: Annotated[float, Field(gt=0)] = 0.01
    source_step: Annotated[float, Field(gt=0)] = 0.01
    adaptation: Annotated[float, Field(gt=1)] = 1.5

    norm = "l2"

    def descend(self, task: Task) -> None:
        """Walk as long as there are queries left and the steps have not become nothing."""
        decisions = Decisions(task, self.queries)
        x, rows = decisions.start()
        walk = {
            "x": decisions.to_boundary(x, rows, _START),
            "row": rows,
            "sideways": torch.full_like(rows, self.sideways_step, dtype=x.dtype),
            "nearer": torch.full_like(rows, self.source_step, dtype=x.dtype),
        }
        sideways, nearer = (Outcomes(len(rows), size, x.device) for size in (_SIDEWAYS, _NEARER))
        for step in itertools.count(1):
            on = (decisions.left(walk["row"]) > 0) & (walk["nearer"] >= _CONVERGED) & task.open[walk["row"]]
            if not on.all():
                walk = {name: values[on] for name, values in walk.items()}
                sideways, nearer = sideways.select(on), nearer.select(on)
            x, rows = walk["x"], walk["row"]
            if not len(rows):
                return
            noise = normal_offsets(task.seed, stream(task.key[rows], step), x)
            around, proposal = propose(x, task.x0[rows], noise, walk["sideways"], walk["nearer"])
            hit = decisions.ask(proposal, rows)
            accepted = hit & task.offer(proposal, hit, rows)
            x[accepted] = proposal[accepted]
            if step % _EVERY == 0:
                both = (decisions.left(rows) > 0).nonzero().squeeze(1)
                sideways.note(decisions.ask(around[both], rows[both]), both)
                nearer.note(hit[both], both)
                # Half of the sideways steps should stay adversarial, and a quarter of the whole proposals.
                change = sideways.change(0.2, 0.5, self.adaptation)
                walk["sideways"].mul_(change)
                walk["nearer"].mul_(change).mul_(nearer.change(0.1, 0.25, self.adaptation))


def propose(
    x: Float[Tensor, "n c h w"],
    x0: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    sideways: Float[Tensor, " n"],
    nearer: Float[Tensor, " n"],
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """A point beside `x` at the same distance from the image, and the same moved towards the image; both in the box.

    Args:
        x: where the walks stand.
        x0: the images.
        noise: normal numbers.
        sideways: length of the step on the sphere, as a share of the distance.
        nearer: of the step towards the image.
    """
    towards = x0 - x
    length = _column(distance(x, x0, "l2")).clamp_min(1e-12)
    across = noise - towards * ((noise * towards).sum((1, 2, 3), keepdim=True) / length**2)
    across *= _column(sideways) * length / torch.linalg.vector_norm(across.flatten(1), dim=1).view(-1, 1, 1, 1)
    around = (x0 + (across - towards) / torch.sqrt(1 + _column(sideways) ** 2)).clamp_(0, 1)
    # Clipping to the box may have brought the point nearer already.
    here = _column(distance(around, x0, "l2")).clamp_min(1e-12)
    move = (_column(nearer) * length + here - length).clamp_min_(0)
    return around, (around + (x0 - around) * (move / here)).clamp_(0, 1)


class Outcomes:
    """The latest outcomes of each sample, as many as a change of its step length is based on.

    Args:
        count: samples.
        size: outcomes kept.
        device: where.
    """

    def __init__(self, count: int, size: int, device: torch.device):
        self.kept = torch.zeros(count, size, dtype=torch.bool, device=device)
        self.seen = torch.zeros(count, dtype=torch.int64, device=device)

    def select(self, which: Bool[Tensor, " n"]) -> Outcomes:
        """Those of some samples."""
        chosen = Outcomes(0, self.kept.shape[1], self.kept.device)
        chosen.kept, chosen.seen = self.kept[which], self.seen[which]
        return chosen

    def note(self, outcome: Bool[Tensor, " m"], rows: Tensor) -> None:
        """Add an outcome of each of some samples; the oldest makes room."""
        self.kept[rows, self.seen[rows] % self.kept.shape[1]] = outcome
        self.seen[rows] += 1

    def change(self, low: float, high: float, factor: float) -> Float[Tensor, " n"]:
        """The factor where more than `high` succeed, its inverse below `low`, and there forget; elsewhere 1."""
        share = self.kept.float().mean(1)
        full = self.seen >= self.kept.shape[1]
        up, down = full & (share > high), full & (share < low)
        self.seen.masked_fill_(up | down, 0)
        return torch.where(up, factor, torch.where(down, 1 / factor, 1.0))


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
