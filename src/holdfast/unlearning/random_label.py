"""Random labels: teach the model nonsense about the forget set, and the truth about the rest.

Two conventions are in use. Labels drawn from all classes, anew for every batch, in a pass over the forget set before
each pass over the retained images (Fan et al., arXiv:2310.12508, the default here); and wrong labels, drawn once and
mixed with the rest (Huang et al., arXiv:2409.19732), which over-forgets: the model then errs on the forget set far more
often than on images it has never seen.

After Golatkar et al., "Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks", CVPR 2020,
arXiv:1911.04933, section 6, and Graves et al., "Amnesiac Machine Learning", AAAI 2021, arXiv:2010.10981.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.data import Images
from holdfast.methods import Callback, Objective, Paper
from holdfast.run import Run
from holdfast.training import SGD, InTurn, Optimizer, Step
from holdfast.unlearning.fine_tuning import FORGET, FineTuning, grouped, wrong_labels

__all__ = ["RandomLabel"]


@dataclass(frozen=True, kw_only=True)
class RandomLabel(
    FineTuning,
    id="random-label",
    title="Random labels for the forget set",
    paper=Paper(title="Amnesiac Machine Learning", arxiv="2010.10981", venue="AAAI", year=2021),
):
    """Fine-tuning with random labels on the forget set and true ones on the retained images.

    Args:
        labels: drawn from ``"all"`` classes, or from the ``"wrong"`` ones.
        draw: ``"batch"``: anew each time an image is seen; ``"once"``: for the whole training.
        order: ``"forget-first"``: each epoch passes over the forget set, then over the rest; ``"mixed"``: both shuffled
            together.
    """

    optimizer: Optimizer = SGD(lr=0.013, momentum=0.9, nesterov=False, weight_decay=5e-4)
    labels: Literal["all", "wrong"] = "all"
    draw: Literal["batch", "once"] = "batch"
    order: Literal["forget-first", "mixed"] = "forget-first"

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: nothing is to be forgotten, or nothing retained.
        """
        images = grouped(forget, retain)
        if self.draw == "once":
            y = images.y.clone()
            y[: len(forget)] = _drawn(forget.y, forget.num_classes, self.labels, run.rng("random labels"))
            images = images.but(y=y)
        return self.tuned(
            model,
            images,
            objective=_Nonsense(self.labels, forget.num_classes, again=self.draw == "batch"),
            callbacks=self._callbacks(model, forget, run),
            order=InTurn((len(forget), len(retain))) if self.order == "forget-first" else None,
            name=RandomLabel.id,
            run=run,
        )

    def _callbacks(self, model: nn.Module, forget: Images, run: Run) -> Sequence[Callback]:
        """What else the training obeys."""
        return ()


class _Nonsense(Objective):
    """Cross-entropy, with labels drawn for the images to forget."""

    columns = (FORGET,)

    def __init__(self, labels: str, classes: int, *, again: bool):
        self.labels, self.classes, self.again = labels, classes, again

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        if self.again and (forget := step.columns[FORGET]).any():
            drawn = _drawn(y, self.classes, self.labels, step.rng("random labels"))
            y = torch.where(forget, drawn, y)
        return F.cross_entropy(step.seen(model(x)), y)

    def __str__(self) -> str:
        return f"random labels of {self.labels} classes{', drawn again' if self.again else ''}"


def _drawn(y: Tensor, classes: int, labels: str, rng: torch.Generator) -> Tensor:
    if labels == "wrong":
        return wrong_labels(y, classes, rng)
    return torch.randint(classes, y.shape, generator=rng).to(y.device)
