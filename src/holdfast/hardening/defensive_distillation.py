"""Defensive distillation: train at a high temperature, on the soft answers of a teacher trained so, and deploy at one.

The deployed network's logits are about T times larger than usual, its softmax saturates, and the gradient of the
cross-entropy rounds to zero. That stops FGSM and hardly anything else, which makes it the standard specimen of a
masked gradient.

Papernot et al., "Distillation as a Defense to Adversarial Perturbations against Deep Neural Networks", S&P 2016,
arXiv:1511.04508, section IV; broken by Carlini & Wagner, S&P 2017, arXiv:1608.04644.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.methods import Objective, Paper
from holdfast.models import load_model, save_weights, weights_hash
from holdfast.run import Run
from holdfast.training import FitResult, Step, fit

__all__ = ["DefensiveDistillation", "distil", "distillation_loss"]


@dataclass(frozen=True, kw_only=True)
class DefensiveDistillation(
    Objective,
    id="defensive-distillation",
    title="Defensive distillation",
    paper=Paper(
        title="Distillation as a Defense to Adversarial Perturbations against Deep Neural Networks",
        arxiv="1511.04508",
        venue="S&P",
        year=2016,
    ),
):
    """Cross-entropy at a temperature, for the teacher, and then on the teacher's soft answers, for the student.

    Do not rely on it. It withstands FGSM because it hides gradients; attacks on the margin (`cw`, ``apgd(loss='dlr')``)
    or on the logits divided by T break it as easily as an undefended network. It is here as a baseline, and for
    showing what masked gradients look like.

    Two trainings, the second with the first one's weights; in code, `distil` does both:

        objective: defensive-distillation(temperature=100)
        objective: defensive-distillation(temperature=100, teacher='runs/teacher/weights.safetensors')

    Args:
        temperature: T, which the logits are divided by in both trainings. The network is deployed without it.
        teacher: a weights file or ``zoo:NAME``; without one, the labels teach, which makes the teacher.
        soft: weight of the teacher's answers; below 1, ordinary distillation with the weight of its loss times T
            squared and the rest for the labels at temperature one.
        gain: factor on the loss; none takes T, which gives the logits gradients of the usual size, so that the usual
            learning rates fit.
    """

    temperature: Annotated[float, Field(ge=1)] = 100.0
    teacher: str | None = None
    soft: Annotated[float, Field(ge=0, le=1)] = 1.0
    gain: Annotated[float, Field(gt=0)] | None = None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The loss of the batch (x, y)."""
        if self.teacher is not None:
            return self.taught_by(_teacher(self.teacher, x.device), model, x, y, step)
        return self.factor * F.cross_entropy(step.seen(model(x)) / self.temperature, y)

    def taught_by(self, teacher: nn.Module, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """The student's loss, with a teacher in evaluation mode on the device of `x`."""
        with torch.no_grad(), step.run.autocast():
            q = (teacher(x).float() / self.temperature).softmax(1)
        logits = step.seen(model(x))
        return self.factor * distillation_loss(logits, q, y, temperature=self.temperature, soft=self.soft)

    @property
    def factor(self) -> float:
        """`gain`, or T."""
        return self.temperature if self.gain is None else self.gain


def distillation_loss(
    logits: Float[Tensor, "n k"],
    q: Float[Tensor, "n k"],
    y: Int64[Tensor, " n"],
    *,
    temperature: float,
    soft: float = 1.0,
) -> Tensor:
    """The mean loss of a student.

    Args:
        logits: the student's.
        q: the teacher's probabilities at the temperature.
        y: the labels.
        temperature: T.
        soft: 1 is Papernot's cross-entropy with q at T; below, ``soft T^2 KL(q || p_T) + (1 - soft) CE(logits, y)``.
    """
    if soft == 1:
        return F.cross_entropy(logits / temperature, q)
    divergence = F.kl_div((logits / temperature).log_softmax(1), q, reduction="batchmean")
    return soft * temperature**2 * divergence + (1 - soft) * F.cross_entropy(logits, y)


def distil(
    model: nn.Module,
    images: Images,
    *,
    epochs: int,
    method: DefensiveDistillation | None = None,
    run: Run,
    **named: Any,
) -> FitResult:
    """Train a teacher and then a student of the same architecture, both from the given weights.

    Args:
        model: from `build_model` or the like; it becomes the student.
        images: the training set.
        epochs: of each of the two trainings.
        method: temperature and weights; its `teacher` is not read.
        run: with an output folder, which keeps the teacher (``teacher/weights.safetensors``) and resumes both.
        named: further arguments of `fit`.

    Returns:
        Of the student's training.
    """
    method = method or DefensiveDistillation()
    teaching = DefensiveDistillation(temperature=method.temperature, gain=method.gain)
    teacher = copy.deepcopy(model)
    fitted = fit(teacher, images, epochs=epochs, objective=teaching, run=run.child("teacher"), **named).final_model
    if run.out is not None:
        save_weights(fitted, run.out / "teacher" / "weights.safetensors")
    student = _Student(fitted, method)
    return fit(model, images, epochs=epochs, objective=student, run=run.child("student"), **named)


class _Student(Objective):
    """The student's loss with a teacher that is at hand."""

    def __init__(self, teacher: nn.Module, method: DefensiveDistillation):
        self.teacher, self.method = teacher.eval().requires_grad_(False), method

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return self.method.taught_by(self.teacher.to(x.device), model, x, y, step)

    def __str__(self) -> str:
        return f"{self.method} of the teacher {weights_hash(self.teacher)}"


def _teacher(weights: str, device: torch.device) -> nn.Module:
    path = Path(weights)
    return _loaded(weights, device, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=2)
def _loaded(weights: str, device: torch.device, written: int) -> nn.Module:
    """The teacher, frozen; read again when its file is written again."""
    return load_model(weights).to(device).eval().requires_grad_(False)
