"""What gradients say: whether there are any, whether they are the slope of the loss, and whether they lead anywhere."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from holdfast.evasion.balls import within
from holdfast.evasion.losses import best_other, loss_for
from holdfast.evasion.masking.sign import Sign, share, sign
from holdfast.evasion.oracle import Oracle, consult
from holdfast.run import Run, content_keys, uniform_at

__all__ = ["gradient_signs", "slope_error", "zero_gradients"]

_STEP = 1e-3  # of finite differences, l_2
_DIRECTIONS = 20
_MEASURED = 16  # images whose slope is measured by finite differences
_WIDTH = 8 / 255  # of the noise under which scores should stay put
_DRAWS = 10


def zero_gradients(
    model: nn.Module, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], *, run: Run
) -> Bool[Tensor, " n"]:
    """Which images have a cross-entropy whose gradient is exactly zero, in float32.

    With a model of `holdfast.evasion.adaptive.softened` it shows whether that is the doing of a saturated softmax.
    """
    with consult(model, x[:8], run.but(precision="fp32")) as oracle:
        gradients = [
            oracle.gradient(part.float().to(oracle.device), loss_for("any", "ce"), labels, labels)[2]
            for part, labels in zip(x.split(oracle.limit), y.to(oracle.device).split(oracle.limit), strict=True)
        ]
    return _nothing(torch.cat(gradients)).to(x.device)


def gradient_signs(oracle: Oracle, x: Tensor, y: Tensor, run: Run, eps: float) -> list[Sign]:
    """The signs that gradients at and around a random point of the ball give."""
    keys, pixels = content_keys(x), x[0].numel()
    entropy, margin = loss_for("any", "ce"), loss_for("any", "margin")
    start = within(x, eps, "linf", uniform_at(run.seed_for("start"), keys, pixels))
    logits, _, of_entropy = oracle.gradient(start, entropy, y, y)
    _, here, of_margin = oracle.gradient(start, margin, y, y)
    beside = within(start, eps / 8, "linf", uniform_at(run.seed_for("beside"), keys, pixels))
    _, _, of_margin_beside = oracle.gradient(beside, margin, y, y)
    flips = uniform_at(run.seed_for("signs"), keys, pixels).view(x.shape) < 0.5
    along = _loss_at(oracle, start + of_margin.sign() * eps / 8, y) - here
    across = _loss_at(oracle, start + torch.where(flips, eps / 8, -eps / 8), y) - here
    cosine = F.cosine_similarity(of_margin.flatten(1), of_margin_beside.flatten(1))
    return [
        sign(
            "zero-gradient",
            share(_nothing(of_entropy)),
            0.01,
            "fail",
            "Images whose cross-entropy has a gradient of exactly zero at a random point of the ball: sign(0) leaves "
            "them where they are.",
            "apgd(loss='dlr'), or divide the logits (holdfast.evasion.adaptive.softened); where cut-gradient fails "
            "too, see there.",
        ),
        sign(
            "cut-gradient",
            share(_nothing(of_margin)),
            0.01,
            "fail",
            "Images whose margin has a gradient of exactly zero as well. No softmax does that: the path from the image "
            "to the logits is cut, by rounding, detaching, or a guard that answers in the model's place.",
            "A differentiable stand-in for the part that cuts it: holdfast.evasion.adaptive.bpda and informed; "
            "square(queries=5000) needs none.",
        ),
        sign(
            "saturated-softmax",
            share(logits.softmax(1).gather(1, y[:, None]) == 1),
            0.5,
            "warn",
            "Images to whose class float32 gives a probability of exactly 1. The cross-entropy hardly moves there.",
            "apgd(loss='dlr')",
        ),
        sign(
            "useless-gradient",
            share(along <= across.clamp_min(0)),
            0.15,
            "fail",
            "Images whose margin loss grows no more along the sign of its gradient than along random signs, for a step "
            "of eps / 8: gradients that do not predict the loss next door.",
            "square(queries=5000), or the mean gradient of points around (holdfast.evasion.adaptive.Expectation of the "
            "model under noise).",
        ),
        sign(
            "wrong-slope",
            slope_error(oracle, start[:_MEASURED], y[:_MEASURED], run),
            0.2,
            "warn",
            "How far the gradient is from the slope that finite differences measure along 20 directions, relative to "
            "the larger of the two; the median over images. Not a share.",
            "square(queries=5000), or a stand-in that is smooth.",
        ),
        sign(
            "turning-gradient",
            1 - float(cosine.mean()) if bool(of_margin.any()) else 0.0,
            0.9,
            "warn",
            "One minus the mean cosine between the gradients at two points eps / 8 apart. Not a share. At 1 they have "
            "nothing in common.",
            "apgd(eot=20) on the model under noise of that size.",
        ),
        sign(
            "unstable-scores",
            _instability(oracle, x, y, run),
            0.5,  # 0.04 on an adversarially trained ResNet-20 and 0.26 on a standard one, both honest
            "warn",
            "By how much the margin moves under noise of total width 8/255, relative to itself, at most 1; the mean "
            "over images. Not a share.",
            "apgd(eot=20), restarts.",
        ),
    ]


def slope_error(oracle: Oracle, x: Tensor, y: Tensor, run: Run) -> float:
    """The median over images of the relative error of the margin's gradient against central differences.

    In float64 where the model can be computed so, else in float32, whose rounding may account for some per cent.
    """
    model, dtype = _in_double(oracle.judge, x)
    points = x.to(dtype).requires_grad_()
    with torch.enable_grad():
        loss = _margin(oracle, model(points), y)
    gradient = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss.sum(), points, allow_unused=True)
    gradient = torch.zeros_like(points) if gradient is None else gradient
    keys, pixels = content_keys(x), x[0].numel()
    told, measured = [], []
    with torch.no_grad():
        for k in range(_DIRECTIONS):
            u = uniform_at(run.seed_for("direction", k), keys, pixels).to(dtype).view_as(points) - 0.5
            u = u / u.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            told.append((gradient * u).flatten(1).sum(1))
            up, down = (_margin(oracle, model(points + side * _STEP * u), y) for side in (1, -1))
            measured.append((up - down) / (2 * _STEP))
    a, b = torch.stack(told), torch.stack(measured)
    larger = torch.maximum(a.norm(dim=0), b.norm(dim=0))
    error = torch.where(larger > 0, (a - b).norm(dim=0) / larger.clamp_min(1e-30), 0.0)
    return float(error.median())


def _in_double(model: nn.Module, x: Tensor) -> tuple[nn.Module, torch.dtype]:
    try:
        double = copy.deepcopy(model).double()
        with torch.no_grad():
            if double(x[:1].double()).dtype == torch.float64:
                return double, torch.float64
    except Exception:  # a stranger's model may refuse to be copied, or to compute in float64, in any way
        pass
    return model, torch.float32


def _margin(oracle: Oracle, output: Tensor, y: Tensor) -> Tensor:
    logits = output.clamp_min(1e-38).log() if oracle.probabilities else output
    return best_other(logits, y) - logits.gather(1, y[:, None]).squeeze(1)


def _loss_at(oracle: Oracle, point: Tensor, y: Tensor) -> Tensor:
    return loss_for("any", "margin")(oracle.logits(point.clamp(0, 1)), y, y)


def _instability(oracle: Oracle, x: Tensor, y: Tensor, run: Run) -> float:
    keys, pixels = content_keys(x), x[0].numel()
    here = _loss_at(oracle, x, y)
    moved = []
    for k in range(_DRAWS):
        numbers = uniform_at(run.seed_for("unstable", k), keys, pixels)
        there = _loss_at(oracle, within(x, _WIDTH / 2, "linf", numbers), y)
        moved.append(((there - here).abs() / here.abs().clamp_min(1e-12)).clamp_max(1))
    value = float(torch.stack(moved).mean())
    return 0.0 if math.isnan(value) else value


def _nothing(gradient: Tensor) -> Tensor:
    return (gradient == 0).flatten(1).all(1)
