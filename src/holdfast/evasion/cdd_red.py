"""CDD-RED: learn to undo attacks, so that an attacked image gives back the clean image and the perturbation.

A denoiser maps attacked images to clean ones. It learns not only to match pixels: a frozen classifier must say of the
recovered image what it says of the clean one, and of the clean image with the recovered perturbation what it says of
the attacked one. Transformed copies whose label the transform leaves alone take part.

Gong et al., "Reverse Engineering of Imperceptible Adversarial Image Perturbations", ICLR 2022, arXiv:2203.14145.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast import catalog
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.evasion.attacked_pairs import COLUMN, attacked_pairs, crop_and_pad, cut_mix
from holdfast.evasion.guard import Guarded, TrainedGuard
from holdfast.evasion.oracle import demand_gradients
from holdfast.methods import Attack, Objective, Paper
from holdfast.models import DnCNN, load_model
from holdfast.run import Run
from holdfast.training import Adam, MultiStep, Step, fit

__all__ = ["CDDRED", "GuardedByCDDRED", "learn_denoiser", "train_denoiser"]

_COPIES = (crop_and_pad, cut_mix)
_DROP = 140 / 300  # of the training, when the learning rate falls to a tenth


@dataclass(frozen=True, kw_only=True)
class CDDRED(
    TrainedGuard,
    id="cdd-red",
    title="CDD-RED",
    paper=Paper(
        title="Reverse Engineering of Imperceptible Adversarial Image Perturbations",
        arxiv="2203.14145",
        venue="ICLR",
        year=2022,
    ),
):
    """A denoiser before a model, and a forensic tool: ``guarded.estimate(x_adv)`` gives image and perturbation.

    To find out what was done to images that are known to be attacked: what the clean image was, and what the attacker
    added. As a defence it stops only attackers who do not know it, since the guarded model is differentiable and can be
    attacked as a whole; report that figure too (`pgd` on the guarded model does it). Answering costs a pass of the
    denoiser, at full size about fourteen times one of ResNet-20.

    `train` attacks the model itself, which also judges as the frozen classifier, and the `victims`; in code,
    `train_denoiser` takes victims and classifier as they are. Training at full size takes days on one GPU: with pairs
    of v victims and a attacks, v a times the images, six passes of the classifier for each, 300 epochs in batches of
    4. A cheap setting, minutes on a CPU: ``cdd-red(attacks=['fgsm', 'i-fgsm(random_start=true)'], depth=6, width=32,
    epochs=6, batch_size=32, lr=0.001)`` on some thousand images. Two known baselines are settings of it: DO, the
    denoiser alone, is ``gamma=0, lam=0``; DS, denoised smoothing's loss, is ``mae=0, lam=0``.

    Strengths and steps of the attacks in `attacks` are our choice; they are made anew when a stopped training resumes.

    Args:
        attacks: specs of the attacks to learn from, each on every image and victim.
        victims: further models to attack, as `holdfast.models.load_model` takes them.
        mae: weight of the mean absolute error in pixels.
        gamma: weight of the cross-entropy that has the recovered image predicted as the clean one.
        lam: weight of the cross-entropy that has the clean image with the recovered perturbation predicted as the
            attacked one.
        copies: transformed copies of each pair: none, one cropped and padded, or that and one of CutMix.
        depth, width: convolutions of the denoiser, and channels between them.
        epochs: passes over all pairs; after 140 of 300 of them the learning rate falls to a tenth.
        batch_size: pairs per step, without their copies.
        lr, weight_decay: of Adam.
        weights: file with what was learned, for use as a guard.
    """

    attacks: tuple[str, ...] = (
        "fgsm",
        "i-fgsm(steps=10, random_start=true)",
        "cw(binary_steps=1, steps=100, c=1.0)",
    )
    victims: tuple[str, ...] = ()
    mae: Annotated[float, Field(ge=0)] = 1.0
    gamma: Annotated[float, Field(ge=0)] = 0.025
    lam: Annotated[float, Field(ge=0)] = 0.025
    copies: Annotated[int, Field(ge=0, le=len(_COPIES))] = 2
    depth: Annotated[int, Field(ge=2)] = 17
    width: Annotated[int, Field(ge=1)] = 64
    epochs: Annotated[int, Field(ge=1)] = 300
    batch_size: Annotated[int, Field(ge=1)] = 4
    lr: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attacks:
            raise UserError("cdd-red: attacks must name at least one attack, got none.")
        for spec in self.attacks:
            catalog.build(spec, kind=Attack)
        if not self.mae + self.gamma + self.lam:
            raise UserError("cdd-red: one of mae, gamma and lam must be above 0, got 0 for all three.")

    def untrained(self, model: nn.Module) -> GuardedByCDDRED:
        """The model behind a denoiser that does nothing yet: the same logits to the last bit."""
        return GuardedByCDDRED(model, self)

    def train(self, model: nn.Module, images: Images, *, run: Run) -> GuardedByCDDRED:
        """Learn from images attacked on the model and on the `victims`.

        Raises:
            UserError: there are no images, they do not fit the model, or a model cannot be loaded or attacked.
        """
        others = [
            load_model(name, num_classes=images.num_classes, image_shape=images.shape, classes=images.classes)
            for name in self.victims
        ]
        return train_denoiser(self, images, [model, *others], model, run=run)


class GuardedByCDDRED(Guarded):
    """A model behind a denoiser. It is differentiable, so that an attacker who knows it attacks all of it."""

    guard: CDDRED

    def __init__(self, model: nn.Module, guard: CDDRED):
        super().__init__(model, guard)
        self.denoiser = DnCNN(_channels(model), depth=guard.depth, width=guard.width).train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the recovered images."""
        logits: Tensor = self.model(self.denoiser(x))
        return logits

    def estimate(self, x_adv: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        """The clean images and the perturbations behind attacked images; their sum is what was given.

        Values may lie a little outside of [0, 1], as the model behind sees them.
        """
        x_hat = self.denoiser(x_adv)
        return x_hat, x_adv - x_hat

    def adaptive(self) -> nn.Module:
        """The guarded model itself."""
        return self


def train_denoiser(
    method: CDDRED, images: Images, victims: Sequence[nn.Module], surrogate: nn.Module, *, run: Run
) -> GuardedByCDDRED:
    """Attack the victims with the method's attacks, and learn to undo it.

    Args:
        method: attacks and hyperparameters; its `victims` are not read.
        images: with their true labels.
        victims: models to attack, at least one.
        surrogate: the frozen classifier whose predictions are to be kept, and the model behind the denoiser.
        run: device, precision, seed, output folder.

    Raises:
        UserError: there are no images or victims, they do not fit, or the classifier has no gradients.
    """
    _check(images, surrogate)
    return learn_denoiser(method, attacked_pairs(images, victims, method.attacks, run=run), surrogate, run=run)


def learn_denoiser(method: CDDRED, pairs: Images, surrogate: nn.Module, *, run: Run) -> GuardedByCDDRED:
    """Learn from pairs at hand, as `holdfast.evasion.attacked_pairs` makes them.

    Args:
        method: hyperparameters; its `attacks` and `victims` are not read.
        pairs: clean images with the column ``perturbation``.
        surrogate: as of `train_denoiser`.
        run: device, precision, seed, output folder.
    """
    _check(pairs, surrogate)
    if COLUMN not in pairs.columns or pairs.columns[COLUMN].shape != pairs.x.shape:
        raise UserError(f"cdd-red: {pairs.name} must have a column {COLUMN!r} of the images' shape.")
    demand_gradients("cdd-red", surrogate)
    guarded = method.untrained(surrogate)
    home = next(surrogate.parameters(), torch.empty(0)).device
    guarded.denoiser.initialise(run.rng("denoiser"))
    fit(
        _Trainee(guarded.denoiser, surrogate, method),
        pairs,
        epochs=method.epochs,
        batch_size=method.batch_size,
        objective=_Reversal(method),
        optimizer=Adam(lr=method.lr, weight_decay=method.weight_decay),
        schedule=MultiStep(at=(_DROP,)),
        run=run.child("denoiser"),
    )
    guarded.denoiser.to(home)
    return guarded


class _Trainee(nn.Module):
    """The denoiser in training before a frozen classifier.

    From images alone it gives logits, which is what `fit` wants to see; from pairs, the loss. All of it happens in one
    forward pass, so that it also trains on several devices.
    """

    def __init__(self, denoiser: nn.Module, classifier: nn.Module, method: CDDRED):
        super().__init__()
        self.denoiser, self.method = denoiser, method
        self.classifier = copy.deepcopy(classifier).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> _Trainee:
        """Only the denoiser has a training mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, x: Tensor, x_adv: Tensor | None = None, originals: int = 0) -> Any:
        """Logits of `x`; or, of pairs of which the first are `originals` and the rest copies, loss and logits."""
        if x_adv is None:
            return self.classifier(self.denoiser(x))
        weight, logits = self.method, None
        x_hat = self.denoiser(x_adv)
        loss = weight.mae * (x_hat - x).abs().float().mean()
        if weight.gamma:
            benign, logits = self._alignment(x_hat, x, originals)
            loss = loss + weight.gamma * benign
        if weight.lam:
            adversarial, _ = self._alignment(x_adv - x_hat + x, x_adv, originals)
            loss = loss + weight.lam * adversarial
        return loss, logits

    def _alignment(self, seen: Tensor, reference: Tensor, originals: int) -> tuple[Tensor, Tensor]:
        """The cross-entropy of what is seen with the predictions of the reference, and the originals' logits.

        Copies count where the transform has left the prediction alone.
        """
        with torch.no_grad():
            labels = self.classifier(reference).argmax(1)
        kept = labels == labels[:originals].repeat(len(labels) // originals)
        logits = self.classifier(seen[kept]).float()
        return F.cross_entropy(logits, labels[kept]), logits[:originals]


class _Reversal(Objective):
    """The loss of CDD-RED on a batch of pairs and their transformed copies."""

    columns: ClassVar[tuple[str, ...]] = (COLUMN,)

    def __init__(self, method: CDDRED):
        self.method = method

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        x_adv = (x + step.columns[COLUMN].to(x)).clamp_(0, 1)  # half precision may have left the box by a hair
        rng = step.rng("cdd-red")
        both = [(x, x_adv), *(transform(x, x_adv, rng) for transform in _COPIES[: self.method.copies])]
        loss, logits = model(*(torch.cat(part) for part in zip(*both, strict=True)), len(x))
        if logits is not None:
            step.seen(logits)
        total: Tensor = loss
        return total

    def __str__(self) -> str:
        return str(self.method)


def _check(images: Images, model: nn.Module) -> None:
    if (channels := _channels(model)) != images.shape[0]:
        raise UserError(f"cdd-red: the model takes {channels} channels, but {images.name} has {images.shape[0]}.")


def _channels(model: nn.Module) -> int:
    """Of the images that a model takes."""
    shape: Any = getattr(model, "image_shape", None)
    if shape is not None:
        return int(shape[0])
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise UserError("cdd-red: the model must say its image_shape, (channels, height, width), and has none.")
    return first.in_channels
