"""Can a robustness figure be trusted? Signs that an attack failed for reasons other than robustness.

A model can defeat gradient attacks without resisting perturbations: its gradients vanish, are shattered or are random,
or its softmax hides them. Each sign is a number with a limit; none is a proof, and passing all of them is none either.

Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018, arXiv:1802.00420; Carlini et al.,
"On Evaluating Adversarial Robustness", 2019, arXiv:1902.06705; the flags of AutoAttack (Croce & Hein 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.evasion.balls import within
from holdfast.evasion.fgsm import FGSM
from holdfast.evasion.losses import loss_for
from holdfast.evasion.oracle import Oracle, consult
from holdfast.evasion.outcome import Outcome, check_inputs
from holdfast.evasion.pgd import PGD
from holdfast.evasion.square import Square
from holdfast.run import Run, content_keys, uniform_at

__all__ = ["Sign", "masking_signs"]


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One test for masked gradients.

    Args:
        name: kebab-case.
        ok: the value is within its limit.
        value: what was measured; a share of the images unless the explanation says otherwise.
        limit: the largest value of a model that behaves.
        severity: what a value beyond the limit means: ``"fail"``, the robustness measured is not real; ``"warn"``, a
            stronger attack is needed.
        explanation: what the value is, and what to do if it is beyond the limit.
    """

    name: str
    ok: bool
    value: float
    limit: float
    severity: Literal["fail", "warn"]
    explanation: str


def masking_signs(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    *,
    run: Run,
    eps: float = 8 / 255,
    steps: int = 20,
    queries: int = 500,
) -> list[Sign]:
    """Look for signs of masked gradients in a model, at an l_inf radius.

    About 100 images are enough. The cost is that of seven attacks with `steps` steps and one Square.

    Args:
        model: in any mode, left as it was.
        x, y: images in [0, 1] and their labels.
        run: device, seed, batch size; everything is computed in float32.
        eps: radius at which robustness was measured.
        steps: of the gradient attacks.
        queries: of Square.

    Raises:
        UserError: as the attacks do.
    """
    check_inputs("masking", x, y)
    run = run.but(precision="fp32").child("masking")
    return [*_local_signs(model, x, y, run, eps), *_attack_signs(model, x, y, run, eps, steps, queries)]


def _local_signs(model: nn.Module, x: Tensor, y: Tensor, run: Run, eps: float) -> list[Sign]:
    """What a few passes tell: randomness, probabilities, gradients that are zero or lead nowhere."""
    with consult(model, x[:8], run) as oracle:
        points = x.float().to(oracle.device)
        labels = y.to(oracle.device)
        scatter = _scatter(oracle, points)
        vanished, useless = _gradient_use(oracle, points, labels, run, eps)
        probabilities = oracle.probabilities
    return [
        _sign(
            "random-output",
            scatter,
            1e-4,
            "fail",
            "The largest distance between two outputs for one image, in evaluation mode, of outputs scaled to length "
            "1. Random defences must be attacked, and judged, on the average over many draws.",
        ),
        _sign(
            "probability-output",
            float(probabilities),
            0,
            "warn",
            "1 if the model gives probabilities. Their logarithms are attacked instead, but what the softmax has "
            "rounded away is lost: attack the logits.",
        ),
        _sign(
            "zero-gradient",
            vanished,
            0.01,
            "fail",
            "Images whose cross-entropy has a gradient of exactly zero at a random point of the ball. Attack with "
            "loss=margin, or through a differentiable stand-in for the part that cuts the gradient.",
        ),
        _sign(
            "useless-gradient",
            useless,
            0.15,
            "fail",
            "Images whose margin loss grows no more along the sign of its gradient than along random signs, for a step "
            "of eps / 8. Gradients that do not predict the loss next door call for attacks without gradients.",
        ),
    ]


def _scatter(oracle: Oracle, x: Tensor) -> float:
    outputs = torch.stack([torch.nn.functional.normalize(oracle.verdict(x), dim=1) for _ in range(5)])
    return float((outputs[1:] - outputs[0]).norm(dim=2).max())


def _gradient_use(oracle: Oracle, x: Tensor, y: Tensor, run: Run, eps: float) -> tuple[float, float]:
    """The share of images without gradient, and of those whose gradient leads up no better than chance."""
    keys, pixels = content_keys(x), x[0].numel()
    start = within(x, eps, "linf", uniform_at(run.seed_for("start"), keys, pixels))
    _, _, gradient = oracle.gradient(start, loss_for("any", "ce"), y, y)
    vanished = (gradient == 0).flatten(1).all(1)

    def loss_at(point: Tensor) -> Tensor:
        return loss_for("any", "margin")(oracle.logits(point.clamp(0, 1)), y, y)

    _, _, gradient = oracle.gradient(start, loss_for("any", "margin"), y, y)
    flips = uniform_at(run.seed_for("signs"), keys, pixels).view(x.shape) < 0.5
    here = loss_at(start)
    along = loss_at(start + gradient.sign() * eps / 8) - here
    across = loss_at(start + torch.where(flips, eps / 8, -eps / 8)) - here
    return _share(vanished), _share(along <= across.clamp_min(0))


def _attack_signs(model: nn.Module, x: Tensor, y: Tensor, run: Run, eps: float, steps: int, queries: int) -> list[Sign]:
    """What attacks tell when they are compared: a stronger one must find more."""

    def broken(attack: FGSM | PGD | Square) -> Tensor:
        outcome: Outcome = attack.run(model, x, y, run=run)
        return outcome.success

    def missed(stronger: Tensor, weaker: Tensor) -> float:
        return _share(weaker & ~stronger)

    one_step = broken(FGSM(eps=eps))
    cross_entropy = broken(PGD(eps=eps, steps=steps))
    margin = broken(PGD(eps=eps, steps=steps, loss="margin"))
    longer = broken(PGD(eps=eps, steps=5 * steps))
    unbounded = broken(PGD(eps=1, steps=2 * steps, loss="margin"))
    black_box = broken(Square(eps=eps, queries=queries))
    return [
        _sign(
            "one-step-beats-iterative",
            _share(one_step) - _share(cross_entropy | margin),
            0,
            "fail",
            "The share of images that one step fools minus the share that many steps fool. Iterating must help; where "
            "it does not, the gradient leads astray after the first step.",
        ),
        _sign(
            "black-box-beats-white-box",
            missed(cross_entropy | margin, black_box),
            0.02,
            "fail",
            "Images that Square fools with scores alone and PGD does not with gradients. The gradients are worth less "
            "than guessing: report the black-box figure, and attack adaptively.",
        ),
        _sign(
            "unbounded-attack-fails",
            _share(~unbounded),
            0.02,
            "fail",
            "Images still classified rightly when every pixel may change at will (eps = 1). A working attack reaches "
            "none.",
        ),
        _sign(
            "loss-matters",
            missed(cross_entropy, margin),
            0.05,
            "warn",
            "Images that PGD on the margin fools and PGD on the cross-entropy does not: the softmax is saturated. "
            "Report the union.",
        ),
        _sign(
            "more-steps-help",
            missed(cross_entropy, longer),
            0.05,
            "warn",
            "Images that fall only when the attack takes five times as many steps: it had not converged.",
        ),
    ]


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def _sign(name: str, value: float, limit: float, severity: Literal["fail", "warn"], explanation: str) -> Sign:
    return Sign(name=name, ok=value <= limit, value=value, limit=limit, severity=severity, explanation=explanation)
