"""DeepFool: step after step to the nearest of the planes that would be the class boundaries if the model were linear.

Moosavi-Dezfooli et al., "DeepFool: a simple and accurate method to fool deep neural networks", CVPR 2016,
arXiv:1511.04599, algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from holdfast.evasion.balls import Norm
from holdfast.evasion.minimal import MinimalAttack, Task
from holdfast.evasion.pgd import check_eps
from holdfast.evasion.pool import State
from holdfast.methods import Paper

__all__ = ["DeepFool", "step_to_boundary"]

#: Added to the length of a step, in the units of the norm, so that it crosses the plane in spite of rounding. The
#: reference code adds 1e-4 in both norms; in l_inf that is two per cent of what an undefended network needs.
_BEYOND: dict[Norm, float] = {"l2": 1e-4, "linf": 1e-6}


@dataclass(frozen=True, kw_only=True)
class DeepFool(
    MinimalAttack,
    id="deepfool",
    title="DeepFool",
    paper=Paper(
        title="DeepFool: a simple and accurate method to fool deep neural networks",
        arxiv="1511.04599",
        venue="CVPR",
        year=2016,
    ),
):
    """DeepFool (l_2 and l_inf).

    The cheapest good estimate of how far images are from the decision boundary: two to five steps on most networks.
    The distance is an upper bound, typically a few per cent to a third above that of C&W, and more on robust networks,
    whose boundaries are less straight. Not a measure of robust accuracy: a sample ends at its first error.

    A step costs two forward passes and as many gradients as there are candidates, taken together. Images stay in
    [0, 1] all along, which the reference code does not see to. With a target, the planes between the class predicted
    so far and the target are followed.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: only perturbations up to this norm count; None takes all.
        candidates: how many of the likeliest classes are considered, the true one included.
        steps: the most steps per sample.
        overshoot: the perturbation so far is stretched by this share each time the model is asked.
    """

    norm: Literal["linf", "l2"] = "l2"
    eps: Annotated[float, Field(ge=0)] | None = None
    candidates: Annotated[int, Field(ge=2)] = 10
    steps: Annotated[int, Field(ge=1)] = 50
    overshoot: Annotated[float, Field(ge=0)] = 0.02

    passes = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    def descend(self, task: Task) -> None:
        """Linearise, step, ask; whoever errs is done."""
        clean = task.oracle.logits(task.x0)
        task.queries += 1
        likeliest = clean.topk(min(self.candidates, clean.shape[1]), dim=1).indices

        def begin(rows: Tensor) -> State:
            x0 = task.x0[rows]
            return {
                "x0": x0,
                "x": x0.clone(),
                "total": torch.zeros_like(x0),
                "classes": likeliest[rows],
                "predicted": clean[rows].argmax(1),
                "step": torch.zeros_like(rows),
            }

        def step(state: State) -> Bool[Tensor, " n"]:
            rows, x = state["row"], state["x"]
            classes, away = state["classes"], state["predicted"]
            if task.aim == "given":
                classes = torch.stack([away, task.target[rows]], 1)
            logits, gradients = task.oracle.class_gradients(x, classes)
            state["total"].add_(step_to_boundary(logits, gradients, classes, away, self.norm))
            torch.add(state["x0"], state["total"], alpha=1 + self.overshoot, out=x).clamp_(0, 1)
            logits = task.oracle.logits(x)
            task.queries[rows] += 2
            task.gradients[rows] += classes.shape[1]
            fooled = task.fooled(logits, rows)
            task.offer(x, fooled, rows)
            if task.aim == "given":
                away.copy_(logits.argmax(1))
            task.ticker.advance(len(rows) / self.steps)
            return fooled | (state["step"].add_(1) >= self.steps)

        task.sweep(begin, step)


def step_to_boundary(
    logits: Float[Tensor, "n k"],
    gradients: Float[Tensor, "n m c h w"],
    classes: Tensor,
    away: Tensor,
    norm: Norm,
) -> Float[Tensor, "n c h w"]:
    """The smallest change that makes one of the classes overtake the one to get away from, were the model linear.

    Args:
        logits: of all classes.
        gradients: of the logits of `classes`.
        classes: int64 (N, M), among them `away`.
        away: int64 (N,), the class to leave.
        norm: that is to be small.
    """
    here = away[:, None]
    index, place = torch.arange(len(classes), device=classes.device), (classes == here).int().argmax(1)
    normals = torch.nan_to_num(gradients - gradients[index, place][:, None], nan=0.0, posinf=0.0, neginf=0.0)
    gaps = (logits.gather(1, classes) - logits.gather(1, here)).abs()
    # The dual norm of its normal turns a plane's gap into its distance.
    flat = normals.flatten(2)
    lengths = flat.abs().sum(2) if norm == "linf" else torch.linalg.vector_norm(flat, dim=2)
    distances = (gaps / lengths).masked_fill((lengths == 0) | (classes == here), float("inf"))
    nearest = distances.argmin(1)
    normal, far, length = (v[index, nearest] for v in (normals, distances, lengths))
    far = torch.where(far.isinf(), 0, far + _BEYOND[norm]).view(-1, 1, 1, 1)  # no plane at all: stay
    return normal.sign() * far if norm == "linf" else normal * (far / length.clamp_min(1e-30).view(-1, 1, 1, 1))
