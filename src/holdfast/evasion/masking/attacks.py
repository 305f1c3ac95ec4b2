"""What attacks say when they are compared: more knowledge, more steps and a larger ball must find more."""

from __future__ import annotations

from torch import Tensor, nn

from holdfast.evasion.attack import BallAttack
from holdfast.evasion.fgsm import FGSM
from holdfast.evasion.masking.sign import Sign, share, sign
from holdfast.evasion.pgd import PGD
from holdfast.evasion.random_noise import RandomNoise
from holdfast.evasion.square import Square
from holdfast.run import Run

__all__ = ["attack_signs"]


def attack_signs(model: nn.Module, x: Tensor, y: Tensor, run: Run, eps: float, steps: int, queries: int) -> list[Sign]:
    """The signs of attacks compared: a stronger one must find more."""

    def broken(attack: BallAttack) -> Tensor:
        return attack.run(model, x, y, run=run).success

    one_step = broken(FGSM(eps=eps))
    cross_entropy = broken(PGD(eps=eps, steps=steps))
    margin = broken(PGD(eps=eps, steps=steps, loss="margin"))
    longer = broken(PGD(eps=eps, steps=5 * steps))
    wider = broken(PGD(eps=min(2 * eps, 1), steps=steps, loss="margin"))
    unbounded = broken(PGD(eps=1, steps=2 * steps, loss="margin"))
    black_box = broken(Square(eps=eps, queries=queries))
    white_box = cross_entropy | margin
    lucky = black_box.clone()  # random points are tried on what even Square has left
    left = (~(white_box | black_box)).nonzero().squeeze(1)
    if len(left):
        guesses = RandomNoise(eps=eps, queries=queries, points="corners")
        lucky[left] = guesses.run(model, x[left], y[left], run=run).success
    return [
        sign(
            "one-step-beats-iterative",
            share(one_step) - share(white_box),
            0,
            "fail",
            "The share of images that one step fools minus the share that many steps fool. Iterating must help; where "
            "it does not, the gradient leads astray after the first step.",
            "square(queries=5000), or a stand-in that is smooth (holdfast.evasion.adaptive.bpda).",
        ),
        sign(
            "black-box-beats-white-box",
            share(black_box & ~white_box),
            0.02,
            "fail",
            "Images that Square fools with scores alone and PGD does not with gradients. The gradients are worth less "
            "than guessing.",
            "Report square(queries=5000), and attack through a stand-in (holdfast.evasion.adaptive.informed).",
        ),
        sign(
            "chance-beats-attacks",
            share(lucky & ~white_box & ~black_box),
            0.02,
            "fail",
            "Images that random corners of the ball fool and neither PGD nor Square does, on Square's budget.",
            "random-noise(points='corners', queries=5000)",
        ),
        sign(
            "larger-ball-resists",
            share(margin & ~wider),
            0.05,
            "warn",
            "Images that PGD fools at the radius and does not at twice the radius, which holds all the same points.",
            "apgd, restarts, square(queries=5000)",
        ),
        sign(
            "unbounded-attack-fails",
            share(~unbounded),
            0.02,
            "fail",
            "Images still classified rightly when every pixel may change at will (eps = 1). A working attack reaches "
            "none.",
            "The attack is broken, or the gradient is: see the other tests.",
        ),
        sign(
            "loss-matters",
            share(margin & ~cross_entropy),
            0.05,
            "warn",
            "Images that PGD on the margin fools and PGD on the cross-entropy does not: the softmax is saturated. "
            "Report the union.",
            "apgd(loss='dlr')",
        ),
        sign(
            "more-steps-help",
            share(longer & ~cross_entropy),
            0.05,
            "warn",
            "Images that fall only when the attack takes five times as many steps: it had not converged.",
            "apgd(steps=100)",
        ),
    ]
