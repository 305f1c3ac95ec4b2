"""NatMU: relabel images only after changing them so that the new label is true of them.

Pairing an image with a wrong label teaches the model something false, and it over-forgets. Here each forgotten image is
blended, half and half across a smooth border, with a retained image of a class the model already likens it to, and that
class becomes the label of the blend. The model learns to look at what it may keep.

He et al., "Towards Natural Machine Unlearning", IEEE TPAMI 2025, arXiv:2405.15495, section 4.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.data import Images, concat
from holdfast.data.images import to_float
from holdfast.errors import UserError
from holdfast.methods import Objective, Paper
from holdfast.models import predict
from holdfast.run import Run
from holdfast.training import AdamW, Cosine, Optimizer, Schedule, Step
from holdfast.unlearning.fine_tuning import FineTuning, check_request

__all__ = ["NaturalMU", "blend_masks", "partners"]

_MASKS = 4
_HYBRID = "hybrid"


@dataclass(frozen=True, kw_only=True)
class NaturalMU(
    FineTuning,
    id="natural-mu",
    title="NatMU: natural machine unlearning",
    paper=Paper(title="Towards Natural Machine Unlearning", arxiv="2405.15495", venue="IEEE TPAMI", year=2025),
):
    """Fine-tune on the retained images and on blends of them with the forget set, labelled by the retained part.

    Every forgotten image yields four blends, one for each of the classes, other than its own, that the trained model
    finds most likely for it. Blends are not augmented. A step takes its share of them beside the retained images.

    Args:
        delta: added to the weight of the forgotten image, in [-1, 1]; its mean weight is 0.47 at 0, 0.42 at -0.053 and
            0.30 at -0.19. With 1 the blends are the forgotten images under wrong labels, with -1 retained images.
    """

    epochs: Annotated[int, Field(ge=1)] = 5
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Optimizer = AdamW(lr=1e-3, weight_decay=2e-3)
    schedule: Schedule = Cosine()
    delta: Annotated[float, Field(ge=-1, le=1)] = -0.19

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: nothing is to be forgotten, or nothing of another class is retained.
        """
        hybrids = self.hybrids(model, forget, retain, run=run)
        share = len(hybrids) / len(retain)
        objective = _Joint(share)
        return self.tuned(model, retain, objective=objective, companions={_HYBRID: hybrids}, run=run)

    def hybrids(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> Images:
        """The blends with their labels: for each forgotten image up to four, in the order of the masks.

        Raises:
            UserError: as for the call.
        """
        check_request(forget, retain)
        run = run.child(self.id)
        logits = predict(copy.deepcopy(model), forget, run=run)[:, : forget.num_classes]
        classes = likeliest_others(logits, forget.y, retain)
        which = partners(classes, retain.y, rng=run.rng("partners"))
        masks = blend_masks(*forget.shape[1:], self.delta)
        parts: list[Images] = []
        for k in range(classes.shape[1]):
            mask = masks[k % _MASKS]
            blends = [
                mask * x + (1 - mask) * to_float(retain.x[which[begin : begin + len(x), k]])
                for begin, x in _stretches(forget)
            ]
            x = torch.cat(blends).clamp_(0, 1)
            if retain.x.dtype == torch.uint8:
                x = (x * 255).round().to(torch.uint8)
            parts.append(
                retain.but(x=x.to(retain.x.dtype), y=classes[:, k], columns={}, name=f"blends of {forget.name}")
            )
        return concat(*parts)


class _Joint(Objective):
    """Cross-entropy over retained images and blends, in one pass, each counting alike."""

    companions = (_HYBRID,)
    unchanged = (_HYBRID,)

    def __init__(self, share: float):
        self.share = share

    def companion_size(self, name: str, count: int) -> int:
        return max(1, round(self.share * count))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        blends = step.companions[_HYBRID]
        logits = model(torch.cat([x, blends.x])).float()
        step.seen(logits[: len(x)])
        return F.cross_entropy(logits, torch.cat([y, blends.y]))

    def __str__(self) -> str:
        return f"retained images and {self.share} as many blends"


def blend_masks(height: int, width: int, delta: float) -> list[Float[Tensor, "h w"]]:
    """The forgotten image's weights: rising and falling down the rows, across the columns, and the two reversed."""
    rows, columns = (_ridge(size) for size in (height, width))
    down, across = rows[:, None].expand(height, width), columns[None].expand(height, width)
    valleys = [_valley(size) for size in (height, width)]
    masks = [down, across, valleys[0][:, None].expand(height, width), valleys[1][None].expand(height, width)]
    return [(mask + delta).clamp(0, 1) for mask in masks]


def _ridge(size: int) -> Tensor:
    """0 at the first edge, rising to near 1 in the middle and falling to 0 at the last."""
    half = size // 2
    rising = torch.arange(size - half) / max(size - half, 1)
    falling = (half - 1 - torch.arange(half)) / max(half, 1)
    return torch.cat([rising, falling])


def _valley(size: int) -> Tensor:
    """Falling from near 1 to 0 in the middle, and rising."""
    half = size // 2
    falling = (half - 1 - torch.arange(half)) / max(half, 1)
    rising = torch.arange(size - half) / max(size - half, 1)
    return torch.cat([falling, rising])


def likeliest_others(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"], retain: Images) -> Int64[Tensor, "n c"]:
    """The (up to four) classes, other than an image's own, that the model finds most likely and that are retained.

    Raises:
        UserError: no other class is retained.
    """
    present = torch.bincount(retain.y, minlength=logits.shape[1])[: logits.shape[1]] > 0
    scores = logits.double().masked_fill(~present, -torch.inf).scatter(1, y[:, None], -torch.inf)
    least = int(torch.isfinite(scores).sum(1).min())
    if not least:
        raise UserError("natural-mu: no image of another class is retained to blend the forgotten ones with.")
    return scores.topk(min(_MASKS, least), dim=1).indices


def partners(classes: Int64[Tensor, "n c"], y: Int64[Tensor, " m"], *, rng: torch.Generator) -> Int64[Tensor, "n c"]:
    """For each wanted class a retained image of that class, as an index; none comes again before all of its class did.

    The published method moves demand for classes in short supply to other classes; here their images come again.

    Args:
        classes: wanted, (N, C).
        y: labels of the retained images.
        rng: draws them.
    """
    flat = classes.flatten()
    chosen = torch.empty_like(flat)
    for label in flat.unique().tolist():
        wanted = (flat == label).nonzero().flatten()
        supply = (y == label).nonzero().flatten()
        rounds = -(-len(wanted) // len(supply))
        order = torch.cat([supply[torch.randperm(len(supply), generator=rng)] for _ in range(rounds)])
        chosen[wanted] = order[: len(wanted)]
    return chosen.view_as(classes)


def _stretches(images: Images, size: int = 1024) -> Sequence[tuple[int, Tensor]]:
    return [(begin, to_float(images.x[begin : begin + size])) for begin in range(0, len(images), size)]
