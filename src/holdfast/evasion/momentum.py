"""The loop of the attacks that are made to transfer: on a surrogate, for models that the attacker cannot see.

One loop serves them all. Each method switches on its part: memory of the gradients so far (MI), a look ahead (NI),
random resizing (DI), smoothing of the gradient (TI), copies at several scales (SI), tuning by the gradients near by
(VMI); parts combine freely. Unlike attacks that measure a model's own robustness, they take all their steps: a point
that has just crossed the surrogate's boundary has not crossed another model's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.evasion.attack import Evasion
from holdfast.evasion.balls import distance, project, within
from holdfast.evasion.ensemble import fused_loss
from holdfast.evasion.losses import Aim, Loss, LossName, loss_for, reached
from holdfast.evasion.oracle import Oracle, consult
from holdfast.evasion.outcome import Outcome, check_inputs, check_labels
from holdfast.evasion.resizing import Resizing
from holdfast.models.freeze import fast_layout
from holdfast.run import Run, Ticker, content_keys, uniform_at

__all__ = ["MomentumAttack", "Scene", "StepwiseAttack", "gaussian", "normalised", "smoothed"]

_DRAW = 0x3C6EF372FE94F82B  # odd, 62 bits: keeps the random numbers of a sample's passes apart


@dataclass(eq=False, kw_only=True)
class Scene:
    """Some images under attack, all still as the attacker does not want them.

    Args:
        oracle: the surrogate.
        loss: to be climbed.
        member_loss: the same, of a single model where the surrogate consists of several.
        x0, y, target: images (float32, on the oracle's device), labels, and classes to be predicted instead.
        key: int64 (N,), each image's own, for its random numbers.
        seed: of the stream of random numbers.
        company: all images of the call with their labels, for attacks to which they matter.
        members: the models of which the surrogate consists, for attacks that tell them apart.
    """

    oracle: Oracle
    loss: Loss
    member_loss: Loss
    x0: Float[Tensor, "n c h w"]
    y: Int64[Tensor, " n"]
    target: Int64[Tensor, " n"]
    key: Int64[Tensor, " n"]
    seed: int
    company: tuple[Tensor, Tensor]
    members: Sequence[Oracle] = ()

    def uniforms(self, draw: int, count: int, offset: int = 0) -> Float[Tensor, "n m"]:
        """Uniform numbers in [0, 1) of each image's draw of that number."""
        return uniform_at(self.seed, self.key + torch.tensor(draw, device=self.key.device) * _DRAW, count, offset)


@dataclass(frozen=True, kw_only=True)
class StepwiseAttack(Evasion):
    """An l_inf attack that takes all its steps for every image, and returns where they lead. See `climb`.

    Args:
        eps: radius of the l_inf ball, in pixel units of [0, 1]. 8/255 is the custom for CIFAR-10, 16/255 for ImageNet.
        steps: how many.
        step: length of a step, in the units of `eps`; none takes eps / steps.
        momentum: share of the accumulated gradient kept in each step; 0 is none.
        loss: ``"ce"``, or ``"margin"``, which keeps its gradient when the softmax saturates.
    """

    eps: Annotated[float, Field(ge=0, le=1)] = 8 / 255
    steps: Annotated[int, Field(ge=1)] = 10
    step: Annotated[float, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(ge=0)] = 1.0
    loss: LossName = "ce"

    norm = "linf"

    @property
    def step_length(self) -> float:
        """The length of a step."""
        return self.eps / self.steps if self.step is None else self.step

    @abstractmethod
    def climb(self, scene: Scene, ticker: Ticker) -> Float[Tensor, "n c h w"]:
        """Take all steps from the scene's images; the ticker counts steps."""

    def members(self, oracle: Oracle, example: Float[Tensor, "n c h w"]) -> Sequence[Oracle]:
        """The models of which the surrogate consists, where the attack tells them apart."""
        return ()

    @abstractmethod
    def gradients(self, model: nn.Module) -> int:
        """How many gradients are taken at each image."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, run: Run, target: Tensor | None = None) -> Outcome:
        """Attack the surrogate `model`; see `Evasion.run`. The outcome says how the surrogate itself fared."""
        check_inputs(self.id, x, y, target)
        y = y.to(x.device)
        goal = y if target is None else target.to(x.device)
        aim: Aim = "any" if target is None else "given"
        with consult(model, x[:8], run) as oracle:
            clean = oracle.verdicts(x)
            check_labels(self.id, clean.shape[1], y, None if target is None else goal)
            open_ = ~reached(aim, clean, y, goal)
            rows = open_.nonzero().squeeze(1)
            x_adv, logits = x.clone(), clean.clone()
            members = self.members(oracle, fast_layout(x[:8].float(), oracle.device))
            with run.track(len(rows) * self.steps, self.id) as ticker:
                for part in rows.split(oracle.limit) if len(rows) else ():
                    x0 = fast_layout(x[part].float(), oracle.device)
                    scene = Scene(
                        oracle=oracle,
                        loss=fused_loss(model, aim, self.loss),
                        member_loss=loss_for(aim, self.loss),
                        x0=x0,
                        y=y[part].to(oracle.device),
                        target=goal[part].to(oracle.device),
                        key=content_keys(x0),
                        seed=run.seed_for(self.id),
                        company=(x, y),
                        members=members,
                    )
                    points = self.climb(scene, ticker)
                    x_adv[part], logits[part] = points.to(x_adv), oracle.verdict(points).to(logits)
        passes = open_.long() * self.gradients(model)
        return Outcome(
            x_adv=x_adv,
            success=reached(aim, logits, y, goal),
            correct=clean.argmax(1) == y,
            queries=passes,
            gradients=passes.clone(),
            distance=distance(x_adv, x, "linf"),
            logits=logits,
            clean_logits=clean,
            norm="linf",
            eps=self.eps,
        )


@dataclass(frozen=True, kw_only=True)
class MomentumAttack(StepwiseAttack):
    """Iterative FGSM with any of the parts that make it transfer.

    Args:
        lookahead: where the gradient is taken: ``"none"``, at the current point; ``"momentum"``, where the accumulated
            direction would lead (NI, Lin et al. 2020); ``"gradient"``, where the latest gradient would (PI, Wang et
            al. 2021, "Boosting adversarial transferability through enhanced momentum").
        diversity: probability that an image is randomly resized and padded before a pass (DI, Xie et al. 2019).
        canvas: the largest size it is resized to, in multiples of its own.
        kernel: side, in pixels, of the Gaussian that smooths the gradient (TI, Dong et al. 2019), an odd number; 15
            for ImageNet, 5 for CIFAR-10; 1 leaves the gradient as it is.
        scales: copies of the image, divided by 1, 2, 4, ..., whose gradients are averaged (SI, Lin et al. 2020).
        neighbours: random points near by whose gradients correct the next one (VMI, Wang & He 2021); 0 is none.
        radius: half the side of the box from which they are drawn, in multiples of eps.
        random_start: start at a uniformly random point of the ball, not at the image.
    """

    lookahead: Literal["none", "momentum", "gradient"] = "none"
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    canvas: Annotated[float, Field(ge=1, le=2)] = 1.1
    kernel: Annotated[int, Field(ge=1)] = 1
    scales: Annotated[int, Field(ge=1, le=32)] = 1
    neighbours: Annotated[int, Field(ge=0)] = 0
    radius: Annotated[float, Field(ge=0)] = 1.5
    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise UserError(f"{self.id}: kernel must be an odd number of pixels, got {self.kernel}.")

    def climb(self, scene: Scene, ticker: Ticker) -> Float[Tensor, "n c h w"]:
        """The algorithm: look ahead, take the gradient, correct it, add it to the memory, step along the sign."""
        x0, alpha = scene.x0, self.step_length
        x = x0.clone()
        if self.random_start:
            x = within(x0, self.eps, "linf", scene.uniforms(0, x0[0].numel()))
        memory, latest, variance = (torch.zeros_like(x0) for _ in range(3))
        for t in range(self.steps):
            ahead = {"none": None, "momentum": memory, "gradient": latest}[self.lookahead]
            at = x if ahead is None else x + alpha * self.momentum * ahead
            draw = 1 + t * (self.neighbours + 1)
            gradient = self.slope(scene, at, draw)
            corrected = normalised(gradient + variance if self.neighbours else gradient)
            memory = self.momentum * memory + corrected
            if self.lookahead == "gradient":
                latest = corrected
            if self.neighbours and t + 1 < self.steps:
                variance = self._slope_nearby(scene, x, draw) - gradient
            x = project(x + alpha * memory.sign(), x0, self.eps, "linf")
            ticker.advance(len(x0))
        return x

    def slope(self, scene: Scene, x: Float[Tensor, "n c h w"], draw: int) -> Float[Tensor, "n c h w"]:
        """The gradient of the loss at `x`, averaged over the copies that the model is shown, and smoothed."""
        resize = None
        if self.diversity:
            resize = Resizing(scene.uniforms(draw, 4), self.diversity, self.canvas, *x.shape[2:])
        copies = self.copies(scene, x if resize is None else resize(x), draw)
        y, target = scene.y.repeat(len(copies)), scene.target.repeat(len(copies))
        shown = torch.cat([copy for _, copy in copies]) if len(copies) > 1 else copies[0][1]
        _, _, gradient = scene.oracle.gradient(shown, scene.loss, y, target)
        torch.nan_to_num_(gradient, nan=0.0, posinf=0.0, neginf=0.0)  # or the memory would never lose them
        if len(copies) > 1:
            shares = gradient.split(len(x))
            gradient = torch.stack([f * g for (f, _), g in zip(copies, shares, strict=True)]).mean(0)
        return smoothed(gradient if resize is None else resize.back(gradient), self.kernel)

    def copies(self, scene: Scene, x: Float[Tensor, "n c h w"], draw: int) -> list[tuple[float, Tensor]]:
        """What the model is shown instead of `x`, each with its derivative with respect to `x`."""
        return [(2.0**-j, x * 2.0**-j if j else x) for j in range(self.scales)]

    def gradients(self, model: nn.Module) -> int:
        """One for each copy, of the point and its neighbours, in each step; the last needs no neighbours."""
        return self.copies_shown * (self.steps + self.neighbours * (self.steps - 1))

    @property
    def copies_shown(self) -> int:
        """The number of `copies`."""
        return self.scales

    def _slope_nearby(self, scene: Scene, x: Tensor, draw: int) -> Tensor:
        """The mean gradient in the box around `x`, which may leave [0, 1]."""
        reach, total = self.radius * self.eps, torch.zeros_like(x)
        for i in range(1, self.neighbours + 1):
            # The first four numbers of a draw are the resizing's.
            offset = scene.uniforms(draw + i, x[0].numel(), offset=4).mul_(2 * reach).sub_(reach)
            total += self.slope(scene, x + offset.view(x.shape), draw + i)
        return total / self.neighbours


def normalised(gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Each image's gradient divided by its mean absolute value; where that is zero, zero."""
    mean = gradient.abs().mean((1, 2, 3), keepdim=True)
    return gradient / mean.clamp_min(torch.finfo(gradient.dtype).tiny)


def gaussian(side: int) -> Float[Tensor, " side"]:
    """A Gaussian at `side` places from -3 to 3 standard deviations, scaled to sum to 1."""
    places = torch.linspace(-3, 3, side, dtype=torch.float64) if side > 1 else torch.zeros(1, dtype=torch.float64)
    weights = torch.exp(-0.5 * places**2)
    return weights / weights.sum()


def smoothed(gradient: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c h w"]:
    """Every channel convolved with the Gaussian of that side along both axes, with zeros beyond the edge."""
    if side == 1:
        return gradient
    half, weights = side // 2, gaussian(side).tolist()
    # Sums of shifted images: the same to the last bit in every batch, which a library's convolution need not be.
    for axis, edges in ((2, [0, 0, half, half]), (3, [half, half, 0, 0])):
        padded, length = F.pad(gradient, edges), gradient.shape[axis]
        gradient = sum((w * padded.narrow(axis, i, length) for i, w in enumerate(weights)), torch.zeros_like(gradient))
    return gradient
