"""What visual prompting guards share: pixels added to images, learned so that a network left as it is answers well.

A prompt covers the border of an image, starts at zero and is clipped with the image to [0, 1]. A method says how many
prompts there are, which of them is an image's own, how the network's answers under all of them become one, and the
loss. `PromptGuard` holds the training: the attack on an image starts from the image under its own prompt and climbs the
network's loss; the prompt is then moved against what the attack found.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from holdfast import catalog
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.evasion.ascend import ascend
from holdfast.evasion.guard import Guarded, TrainedGuard
from holdfast.methods import BatchTransform, Objective
from holdfast.models import frozen, only_answers, read_weights
from holdfast.models.features import logits_of
from holdfast.run import Run
from holdfast.training import SGD, Cosine, Step, fit

__all__ = ["PromptGuard", "Prompted"]

# Prompted images per pass of the network: larger batches are no faster, and with ten prompts would take ten times the
# memory that was meant. Parts of a batch that needs gradients are computed again on the way back, instead of kept.
_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class PromptGuard(TrainedGuard):
    """A guard whose prompts are learned with cross-entropy on images and on adversarial examples of them.

    Args:
        pad: width in pixels of the border that a prompt covers; what is inside is never touched. None takes a quarter
            of the shorter side, which is the paper's 8 of 32; half of it covers the whole image.
        epochs: of the training; the prompts after the last one are kept.
        lr: of SGD, with a cosine to zero.
        momentum: of SGD.
        batch_size: images per step.
        eps: radius of the attacks trained against, in the maximum norm and pixel units.
        step: length of their steps; none takes a quarter of `eps`.
        steps: how many, from a random start.
        transforms: of training batches, as specs; the published code's. Images that must not be shifted or mirrored
            take ``[]``.
        weights: file with the prompts, written by ``holdfast harden`` or `save_guard`; training needs none.
    """

    pad: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] = 50
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    batch_size: Annotated[int, Field(ge=1)] = 256
    eps: Annotated[float, Field(gt=0, le=1)] = 8 / 255
    step: Annotated[float, Field(gt=0, le=1)] | None = None
    steps: Annotated[int, Field(ge=0)] = 10
    transforms: tuple[str, ...] = ("crop", "flip")
    weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for spec in self.transforms:
            catalog.build(spec, kind=BatchTransform)

    @abstractmethod
    def count(self, classes: int) -> int:
        """How many prompts a model of so many classes gets."""

    @abstractmethod
    def own(self, y: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """Which prompt is that of images with these labels."""

    @abstractmethod
    def answer(self, logits: Float[Tensor, "n p k"]) -> Float[Tensor, "n k"]:
        """What the guarded model says, from the network's logits under each prompt."""

    @abstractmethod
    def loss(self, lesson: nn.Module, x: Tensor, y: Tensor, attacked: Float[Tensor, "n k"], step: Step) -> Tensor:
        """The loss of a batch.

        Args:
            lesson: ``lesson(x)`` gives the logits under every prompt, (N, P * K); ``lesson(x, which)`` those under one.
            x, y: the batch.
            attacked: logits of the adversarial examples under the images' own prompts.
            step: of the training.
        """

    def stand_in(self, guarded: Prompted) -> nn.Module:
        """What an attacker who knows the guard searches on; by default the guarded model, which passes gradients."""
        return guarded

    def untrained(self, model: nn.Module) -> Prompted:
        """The model behind prompts of zeros; their size is what the model says it takes, else that of the file.

        Raises:
            UserError: neither says it.
        """
        shape, classes = getattr(model, "image_shape", None), getattr(model, "num_classes", None)
        if shape is not None and classes is not None:
            return Prompted(model, self, (self.count(classes), *shape))
        kept = None if self.weights is None else read_weights(self.weights).tensors.get("prompts")
        if kept is not None and kept.ndim == 4:
            return Prompted(model, self, tuple(kept.shape))
        raise UserError(
            f"{self.id}: the model does not say which images it takes and how many classes it knows; give it "
            "attributes image_shape, (channels, height, width), and num_classes."
        )

    def train(self, model: nn.Module, images: Images, *, run: Run) -> Prompted:
        """Learn the prompts; the guarded model is returned in evaluation mode, on the run's device.

        With ``run.out`` set, a training that was stopped goes on where it was; see `holdfast.training.fit`.

        Raises:
            UserError: there are no images, the model does not take them, or it gives no gradients.
        """
        if only_answers(model):
            raise UserError(f"{self.id}: prompts are learned from gradients, and this model only answers queries.")
        if not len(images):
            raise UserError(f"{images.name}: there are no images to learn prompts from.")
        # The copy behind the guard is made of the frozen model, and so is frozen itself.
        with frozen(model, device=run.torch_device):
            x, _ = next(images.batches(2, run.torch_device))
            with torch.no_grad():
                classes = logits_of(model, x).shape[1]
            if classes < images.num_classes:
                raise UserError(
                    f"{self.id}: the model gives {classes} logits, but {images.name} has {images.num_classes} classes."
                )
            guarded = Prompted(model, self, (self.count(classes), *images.shape))
            fit(
                _Lesson(guarded),
                images,
                epochs=self.epochs,
                batch_size=self.batch_size,
                objective=_Prompting(self),
                optimizer=SGD(lr=self.lr, momentum=self.momentum, nesterov=False, weight_decay=0.0),
                schedule=Cosine(),
                transforms=self.transforms,
                run=run.child(self.id),
            )
        return guarded.eval()


class Prompted(Guarded):
    """A frozen model that sees every image under prompts. A pass costs one pass of the network per prompt.

    Args:
        model: to be guarded; it is copied.
        guard: the method.
        shape: prompts, channels, height, width.
    """

    guard: PromptGuard
    border: Tensor

    def __init__(self, model: nn.Module, guard: PromptGuard, shape: tuple[int, ...]):
        super().__init__(model, guard)
        home = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), None)
        self.prompts = nn.Parameter(torch.zeros(shape, device=home))
        self.register_buffer("border", _border(shape[-2], shape[-1], guard.pad).to(home), persistent=False)

    def train(self, mode: bool = True) -> Prompted:
        """Training mode does not reach the network, whose statistics must stay as they are; evaluation mode does."""
        if not mode:
            return super().train(False)
        self.training = True
        return self

    def adaptive(self) -> nn.Module:
        """What the guard says: at most another form of the answer, since clipping and prompts pass gradients on."""
        return self.guard.stand_in(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The guard's answer."""
        return self.guard.answer(self.under_each(x))

    def prompted(self, x: Float[Tensor, "n c h w"], which: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """Each image under the prompt that `which` names for it.

        Raises:
            UserError: the prompts are for images of another shape.
        """
        if x.shape[1:] != self.prompts.shape[1:]:
            wanted, got = ("x".join(map(str, shape)) for shape in (self.prompts.shape[1:], x.shape[1:]))
            raise UserError(f"{self.guard.id}: the prompts are for images of shape {wanted}, got {got}.")
        return (x + (self.border * self.prompts)[which]).clamp(0, 1)

    def under_each(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p k"]:
        """The network's logits for every image under every prompt."""
        parts = x.split(max(1, _ROWS // len(self.prompts)))
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([self._under_each(part) for part in parts])
        return torch.cat([checkpoint(self._under_each, part, use_reentrant=False) for part in parts])

    def _under_each(self, x: Tensor) -> Tensor:
        count = len(self.prompts)
        which = torch.arange(count, device=x.device).repeat(len(x))
        logits = self.model(self.prompted(x.repeat_interleave(count, 0), which))
        return logits.view(len(x), count, -1)


class _Lesson(nn.Module):
    """What `fit` trains: logits under every prompt or under given ones, and there after a change of the pixels."""

    def __init__(self, guarded: Prompted):
        super().__init__()
        self.guarded = guarded

    def forward(self, x: Tensor, which: Tensor | None = None, change: Tensor | None = None) -> Tensor:
        if which is None:
            return self.guarded.under_each(x).flatten(1)
        seen = self.guarded.prompted(x, which)
        answer: Tensor = self.guarded.model(seen if change is None else seen + change)
        return answer


class _Prompting(Objective):
    """The guard's loss, with adversarial examples of the images under their own prompts."""

    def __init__(self, guard: PromptGuard):
        self.guard = replace(guard, weights=None)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        guard = self.guard
        lesson: Any = model if step.model is None else step.model
        guarded: Prompted = lesson.guarded
        which = guard.own(y)
        with torch.no_grad():
            start = guarded.prompted(x, which)
        reached = ascend(
            guarded.model,
            start,
            y,
            eps=guard.eps,
            step=guard.eps / 4 if guard.step is None else guard.step,
            steps=guard.steps,
            generator=step.rng(guard.id),
            autocast=step.run.autocast,
            replays=step.replays,
        )
        # The change found is a constant, and what it is added to is not: so the gradient reaches the prompt.
        attacked = model(x, which, reached - start).float()
        return guard.loss(model, x, y, attacked, step)

    def __str__(self) -> str:
        return f"prompts of {self.guard}"


def _border(height: int, width: int, pad: int | None) -> Float[Tensor, "h w"]:
    """1 on the border, 0 inside."""
    pad = max(1, min(height, width) // 4) if pad is None else pad
    border = torch.ones(height, width)
    border[pad : height - pad, pad : width - pad] = 0
    return border
