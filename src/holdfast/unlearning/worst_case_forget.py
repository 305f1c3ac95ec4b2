"""Worst-case forget sets: the images, of a given number, that unlearning fails on hardest.

A random forget set is easy: most of it is redundant, or hard for everybody. Here a weight for each training image says
how much it is to be forgotten. In turn, the model unlearns by the present weights, by steps that follow only the sign
of the gradient, and the weights move to the images whose loss has stayed low. Since such steps do not change with small
changes of the weights, nothing has to be differentiated through the unlearning.

Fan et al., "Challenging Forgets: Unveiling the Worst-Case Forget Sets in Machine Unlearning", ECCV 2024,
arXiv:2403.07362, section 4. The authors' code scores images augmented and with the model in train mode; here they are
scored plain and in evaluation mode. It starts from a random subset, whose images are then scored as forgotten while all
others are scored as trained on; here, by default, all images start alike.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import Analysis, BatchTransform, Objective, Paper
from holdfast.models import predict
from holdfast.run import Run
from holdfast.training import Constant, Crop, Flip, SignSGD, Step, fit
from holdfast.unlearning.projection import capped_simplex

__all__ = ["WorstCase", "WorstCaseForget"]

_WEIGHT = "forget_weight"


@dataclass(frozen=True, kw_only=True, eq=False)
class WorstCase:
    """A forget set that was searched for.

    Args:
        indices: of its images, in the training set, ascending.
        weights: of all images, or of all classes, in [0, 1]; the largest were taken.
        objective: mean loss of the weighted images after each round; falling where the worst case is sought.
        classes: the classes, where classes were sought.
        method: the spec of the search.
    """

    indices: Int64[Tensor, " m"]
    weights: Float[Tensor, " n"]
    objective: tuple[float, ...]
    classes: tuple[str, ...]
    method: str

    @property
    def sentence(self) -> str:
        """The finding in words."""
        what = f"the classes {', '.join(self.classes)}" if self.classes else f"{len(self.indices)} images"
        return (
            f"Found {what}: after {len(self.objective)} rounds of unlearning, what was to be forgotten has a mean loss "
            f"of {self.objective[-1]:.3g}, in the first round {self.objective[0]:.3g}."
        )

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "method": self.method,
            "indices": self.indices.tolist(),
            "classes": list(self.classes),
            "objective": list(self.objective),
        }


@dataclass(frozen=True, kw_only=True)
class WorstCaseForget(
    Analysis,
    id="worst-case-forget",
    title="Worst-case forget sets",
    paper=Paper(
        title="Challenging Forgets: Unveiling the Worst-Case Forget Sets in Machine Unlearning",
        arxiv="2403.07362",
        venue="ECCV",
        year=2024,
    ),
):
    """Search for the images, or the classes, that a model keeps although it is made to forget them.

    Args:
        count: images, or classes, to find; a number below 1 is a share of them.
        of: what is chosen among, ``"images"`` or ``"classes"``.
        seek: the ``"worst"`` case, or the ``"easiest"``, which reverses the search.
        rounds: of unlearning and choosing.
        epochs: of each unlearning, over all images.
        step: of every weight of the model in those epochs.
        weight_step: of the images' weights, per unit of loss; 0.01 in the paper.
        start: weights that are ``"even"``, or those of a ``"random"`` subset, from which small steps lead nowhere soon.
        gamma: pulls their weights towards being equal.
        batch_size: images per step.
        crop, flip: augmentation in unlearning; ``none`` where it does not fit, such as flipping digits.
    """

    count: Annotated[float, Field(gt=0)] = 0.1
    of: Literal["images", "classes"] = "images"
    seek: Literal["worst", "easiest"] = "worst"
    rounds: Annotated[int, Field(ge=1)] = 10
    epochs: Annotated[int, Field(ge=1)] = 10
    step: Annotated[float, Field(gt=0)] = 1e-3
    weight_step: Annotated[float, Field(gt=0)] = 1.0
    start: Literal["even", "random"] = "even"
    gamma: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Annotated[int, Field(ge=1)] = 256
    crop: BatchTransform | None = Crop(padding=4)
    flip: BatchTransform | None = Flip()

    needs = "the images that the model was trained on"

    def __call__(self, model: nn.Module, images: Images, *, run: Run) -> WorstCase:
        """Search among the training images.

        Args:
            model: trained on them; left as it was.
            images: its training images.
            run: device, precision, seed, progress.

        Raises:
            UserError: there are fewer images, or classes, than one more than are to be found.
        """
        run = run.child(self.id)
        total = len(images) if self.of == "images" else images.num_classes
        chosen = self._number(total)
        weights = torch.full((total,), chosen / total, dtype=torch.float64)
        if self.start == "random":
            weights.zero_()[torch.randperm(total, generator=run.rng("start"))[:chosen]] = 1
        objective = []
        for round in range(self.rounds):
            unlearned = self._unlearned(model, images, weights, run=run.child(f"round-{round}"))
            losses = self._losses(unlearned, images, run)
            objective.append(float((weights * losses).sum() / weights.sum()))
            sign = 1 if self.seek == "worst" else -1
            weights = capped_simplex(weights - self.weight_step * self.descent(weights, losses, sign), chosen)
        top = weights.topk(chosen).indices
        indices = top if self.of == "images" else torch.isin(images.y, top).nonzero().flatten()
        return WorstCase(
            indices=indices.sort().values,
            weights=weights,
            objective=tuple(objective),
            classes=tuple(images.classes[k] for k in top.tolist()) if self.of == "classes" else (),
            method=str(self),
        )

    def descent(self, weights: Tensor, losses: Tensor, sign: int = 1) -> Tensor:
        """The gradient, with respect to the weights, of the weighted losses and `gamma` times the squared weights."""
        return sign * losses + 2 * self.gamma * weights

    def _number(self, total: int) -> int:
        count = round(self.count * total) if self.count < 1 else int(self.count)
        if not 0 < count < total:
            raise UserError(f"{self.id}: of {total} {self.of} between 1 and {total - 1} can be forgotten, not {count}.")
        return count

    def _unlearned(self, model: nn.Module, images: Images, weights: Tensor, *, run: Run) -> nn.Module:
        of_images = weights if self.of == "images" else weights[images.y]
        return fit(
            copy.deepcopy(model),
            images.but(columns={_WEIGHT: of_images.float()}),
            epochs=self.epochs,
            batch_size=self.batch_size,
            objective=_Weighted(),
            optimizer=SignSGD(lr=self.step),
            schedule=Constant(),
            transforms=[transform for transform in (self.crop, self.flip) if transform is not None],
            run=run,
        ).model

    def _losses(self, model: nn.Module, images: Images, run: Run) -> Tensor:
        losses = F.cross_entropy(predict(model, images, run=run).double(), images.y, reduction="none")
        if self.of == "images":
            return losses
        counts = torch.bincount(images.y, minlength=images.num_classes).clamp(min=1)
        return torch.zeros(images.num_classes, dtype=torch.float64).index_add_(0, images.y, losses) / counts

    def of_models(self, models: Mapping[str, nn.Module], images: Images, *, run: Run) -> WorstCase:
        """As ``holdfast analyse`` calls it, with test images.

        Raises:
            UserError: always; ``holdfast unlearn`` has the training images.
        """
        raise UserError(
            f"{self.id} searches among training images, which this command does not read; use "
            f"holdfast unlearn --forget '{self}'."
        )


class _Weighted(Objective):
    """Cross-entropy, each image weighed by how little it is to be forgotten; only its gradient's sign counts."""

    columns = (_WEIGHT,)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        losses = F.cross_entropy(step.seen(model(x)), y, reduction="none")
        return ((1 - step.columns[_WEIGHT]) * losses).mean()

    def __str__(self) -> str:
        return "cross-entropy weighed by what is retained"
