"""What an attack achieved, sample by sample, and what it takes as input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from holdfast.errors import UserError
from holdfast.evasion.balls import Norm

__all__ = ["Outcome", "Stage", "StagedOutcome", "check_inputs"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """The result of an attack on N images. Verdicts are those of the user's own model in float32 on `x_adv`.

    Args:
        x_adv: like the given images in shape, type, device and memory format. An image the model got wrong already is
            returned as it was, bit for bit; one that resisted is the point nearest to success that was seen.
        success: the prediction on `x_adv` is wrong (or is the given target); true also where it was so on `x`.
        correct: the prediction on `x` was right.
        queries: forward passes the search spent on each sample, up to the item that decided it. The pass over the
            clean images and the final verdict are not counted. Restarts and targets after the deciding one are not
            counted either, so that the number does not depend on how many ran side by side.
        gradients: gradients with respect to each sample, counted likewise.
        distance: norm of ``x_adv - x``.
        logits: on `x_adv`, float32 (N, K).
        clean_logits: on `x`, float32 (N, K).
        norm, eps: of the ball.
    """

    x_adv: Float[Tensor, "n c h w"]
    success: Bool[Tensor, " n"]
    correct: Bool[Tensor, " n"]
    queries: Int64[Tensor, " n"]
    gradients: Int64[Tensor, " n"]
    distance: Float[Tensor, " n"]
    logits: Float[Tensor, "n k"]
    clean_logits: Float[Tensor, "n k"]
    norm: Norm
    eps: float

    def __len__(self) -> int:
        return len(self.success)

    @property
    def predictions(self) -> Int64[Tensor, " n"]:
        """The class predicted for each attacked image."""
        return self.logits.argmax(1)

    @property
    def clean_accuracy(self) -> float:
        """The share of images predicted rightly before the attack."""
        return float(self.correct.double().mean())

    @property
    def robust_accuracy(self) -> float:
        """The share of images on which the attack did not reach its goal."""
        return 1 - float(self.success.double().mean())


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One attack of several that are run one after the other.

    Args:
        name: kebab-case.
        attack: its spec.
        seconds: it took.
        attacked: images that stood when it began.
        robust_accuracy: of all images, after it.
    """

    name: str
    attack: str
    seconds: float
    attacked: int
    robust_accuracy: float


@dataclass(frozen=True, kw_only=True, eq=False)
class StagedOutcome(Outcome):
    """The result of attacks run one after the other, each on the images that the earlier ones left.

    Args:
        names, specs: of the attacks, in order.
        seconds: that each took.
        fell: int64 (N,), the position of the attack that succeeded on each image; -1 where none did, and where none
            was needed.
        notes: reasons not to trust the figure, in whole sentences.
    """

    names: tuple[str, ...]
    specs: tuple[str, ...]
    seconds: tuple[float, ...]
    fell: Int64[Tensor, " n"]
    notes: tuple[str, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What each attack did."""
        standing = [int((~self.success | (self.fell >= i)).sum()) for i in range(len(self.names) + 1)]
        return tuple(
            Stage(name=name, attack=spec, seconds=time, attacked=before, robust_accuracy=after / len(self))
            for name, spec, time, before, after in zip(
                self.names, self.specs, self.seconds, standing, standing[1:], strict=False
            )
        )


def check_inputs(who: str, x: Tensor, y: Tensor, target: Tensor | None = None) -> None:
    """Verify images and labels before any work is done.

    Raises:
        UserError: they are empty, of the wrong shape or type, not finite, out of [0, 1], or do not match.
    """
    if not isinstance(x, Tensor) or x.ndim != 4:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise UserError(f"{who}: images must be one tensor of shape (N, C, H, W), got {got}.")
    if x.dtype not in (torch.float32, torch.float64):
        remedy = " holdfast.data.to_float turns bytes into such images." if x.dtype == torch.uint8 else ""
        raise UserError(f"{who}: images must be float32 or float64 in [0, 1], got {x.dtype}.{remedy}")
    if not x.numel():
        raise UserError(f"{who}: there is nothing to attack, the images have shape {tuple(x.shape)}.")
    low, high = (float(v) for v in torch.aminmax(x))
    if low != low or high != high:
        raise UserError(f"{who}: the images hold NaN.")
    if low < 0 or high > 1:
        raise UserError(
            f"{who}: images must lie in [0, 1], got {low:.3g} to {high:.3g}. Normalisation belongs into the model."
        )
    for what, labels in (("labels", y), ("targets", target)):
        if labels is None:
            continue
        if not isinstance(labels, Tensor) or labels.shape != (len(x),):
            got = f"shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
            raise UserError(f"{who}: {len(x)} images need {what} in a tensor of shape ({len(x)},), got {got}.")
        if labels.dtype != torch.int64:
            raise UserError(f"{who}: {what} must be int64, got {labels.dtype}.")


def check_labels(who: str, classes: int, y: Tensor, target: Tensor | None = None) -> None:
    """Verify labels against the number of logits.

    Raises:
        UserError: there are fewer than two classes, a label is out of range, or a target is the true label.
    """
    if classes < 2:
        raise UserError(f"{who}: the model has {classes} class, but an attack needs at least 2.")
    for what, labels in (("labels", y), ("targets", target)):
        if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise UserError(
                f"{who}: {what} must lie in 0..{classes - 1} for a model of {classes} classes, "
                f"got {int(labels.min())}..{int(labels.max())}."
            )
    if target is not None and bool((target == y).any()):
        where = int((target == y).nonzero()[0])
        raise UserError(f"{who}: the target of image {where} is its true class, {int(y[where])}.")
