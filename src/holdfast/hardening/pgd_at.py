"""PGD adversarial training: train on the worst perturbation that a few steps up the loss find around every image.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083, eq. 2.1:
the least, over weights, of the mean, over data, of the largest loss within the ball. Every hardening method is
measured against it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from holdfast.evasion.ascend import ascend
from holdfast.evasion.pgd import check_eps
from holdfast.methods import Objective, Paper
from holdfast.training import CrossEntropy, Step, statistics_kept

__all__ = ["PGDAT"]


@dataclass(frozen=True, kw_only=True)
class PGDAT(
    Objective,
    id="pgd-at",
    title="PGD adversarial training",
    paper=Paper(
        title="Towards Deep Learning Models Resistant to Adversarial Attacks",
        arxiv="1706.06083",
        venue="ICLR",
        year=2018,
    ),
):
    """Cross-entropy on adversarial examples.

    A training step costs `steps` passes forward and back to the images on top of the usual one. Few steps train
    almost as robust a model per epoch as many: 2 or 3 steps of about ``1.5 * eps / steps`` are a good bargain, a
    single one may overfit to itself.

    Args:
        eps: radius of the ball, in pixel units; 8/255 is the custom for l_inf on CIFAR-10, 128/255 for l_2.
        step: length of an ascent step, in the same units.
        steps: of the ascent; 0 trains on random noise.
        norm: of the ball.
        attack_mode: whether batch normalisation uses running statistics (``"eval"``) or those of the attacked batch
            (``"train"``) during the ascent; in neither case are they changed by it.
        adversarial: weight of the adversarial loss; the rest is the loss on the images as they are.
        label_smoothing: share of the target that is spread evenly over all classes.
    """

    eps: Annotated[float, Field(ge=0, le=16)] = 8 / 255
    step: Annotated[float, Field(ge=0, le=16)] = 2 / 255
    steps: Annotated[int, Field(ge=0)] = 10
    norm: Literal["linf", "l2"] = "linf"
    attack_mode: Literal["eval", "train"] = "eval"
    adversarial: Annotated[float, Field(ge=0, le=1)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The loss of the batch at the points an ascent from a random start has reached."""
        x_adv = self.perturb(model if step.model is None else step.model, x, y, step)
        loss = CrossEntropy(label_smoothing=self.label_smoothing)
        adversarial = loss(model, x_adv, y, step)
        if self.adversarial == 1:
            return adversarial
        clean = loss.of(model(x).float(), y, step)
        return (1 - self.adversarial) * clean + self.adversarial * adversarial

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Adversarial examples for the batch; the model's modes, statistics and gradients stay as they are."""
        with mode_of(model, self.attack_mode), statistics_kept(model):
            return ascend(
                model,
                x,
                y,
                eps=self.eps,
                step=self.step,
                steps=self.steps,
                norm=self.norm,
                generator=step.rng("pgd-at"),
                autocast=step.run.autocast,
                # In train mode the rows of a batch depend on each other, which a recording rounded up cannot keep.
                replays=step.replays if self.attack_mode == "eval" else None,
            )


@contextlib.contextmanager
def mode_of(model: nn.Module, mode: Literal["eval", "train"]) -> Iterator[None]:
    """While the block runs, put every module in evaluation mode, or leave all as they are."""
    training = [module for module in model.modules() if module.training] if mode == "eval" else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
