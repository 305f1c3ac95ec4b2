"""Auxiliary branch finetuning: one branch detects outliers, another classifies.

A network trained with outliers, as by `pascl`, has batch statistics of a mixture, and its last layer favours frequent
classes. A second set of batch norms and a second last layer learn on in-distribution images alone, by
`logit-adjustment`; all other weights are shared and stay as they are.

Wang et al., "Partial and Asymmetric Contrastive Learning for Out-of-Distribution Detection in Long-Tailed Recognition",
ICML 2022, arXiv:2207.01160, section 3.3.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast import catalog
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.evasion.guard import Guarded, TrainedGuard
from holdfast.methods import BatchTransform, Method, Paper, Transform
from holdfast.models import classifier_head, frozen
from holdfast.run import Run
from holdfast.training import Adam, Cosine, LogitAdjustment, fit

__all__ = ["ABF", "TwoBranches"]


@dataclass(frozen=True, kw_only=True)
class ABF(
    TrainedGuard,
    id="abf",
    title="Auxiliary branch finetuning",
    paper=Paper(
        title="Partial and Asymmetric Contrastive Learning for Out-of-Distribution Detection in Long-Tailed "
        "Recognition",
        arxiv="2207.01160",
        venue="ICML",
        year=2022,
    ),
):
    """A second branch for classification, learned around a network that goes on detecting outliers.

    The result classifies with the second branch; detectors go to the first, its ``detection``. A prediction together
    with a score costs two passes. On the command line, after ``holdfast train`` with `pascl`, with the long tail that
    it trained on and the same seed:

        holdfast harden "abf(transforms=[long-tail, crop, flip])" --model ... --data cifar10

    Args:
        tau: of the logit adjustment; 0 is plain cross-entropy.
        epochs: of the training.
        lr: of Adam, with a cosine to zero.
        weight_decay: of what learns.
        batch_size: images per step.
        transforms: of the training set, such as ``long-tail``, and of its batches, as specs. Images that must not be
            shifted or mirrored take ``[]``.
        weights: file with the second branch, written by ``holdfast harden`` or `save_guard`; training needs none.
    """

    tau: Annotated[float, Field(ge=0)] = 1.0
    epochs: Annotated[int, Field(ge=1)] = 10
    lr: Annotated[float, Field(gt=0)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    batch_size: Annotated[int, Field(ge=1)] = 128
    transforms: tuple[str, ...] = ("crop", "flip", "color-jitter", "grayscale")
    weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._built()

    def _built(self) -> list[Transform | BatchTransform]:
        found: list[Transform | BatchTransform] = []
        for spec in self.transforms:
            method: Method = catalog.build(spec)
            if not isinstance(method, Transform | BatchTransform):
                raise UserError(f"{self.id}: {method.id!r} is of kind {method.kind}, and transforms takes transforms.")
            found.append(method)
        return found

    def untrained(self, model: nn.Module) -> TwoBranches:
        """Two branches that are equal."""
        return TwoBranches(model, self)

    def train(self, model: nn.Module, images: Images, *, run: Run) -> TwoBranches:
        """Learn the second branch; returned in evaluation mode, on the run's device.

        With ``run.out`` set, a training that was stopped goes on where it was; see `holdfast.training.fit`.

        Raises:
            UserError: there are no images, the model does not take them, or it ends in no linear layer.
        """
        for transform in self._built():
            if isinstance(transform, Transform):
                images = transform(images, run=run)
        if not len(images):
            raise UserError(f"{images.name}: there are no images to learn a branch from.")
        example, _ = next(images.batches(2, run.torch_device))
        # The copy is made of the frozen model, and so is frozen itself.
        with frozen(model, device=run.torch_device):
            branches = TwoBranches(model, self, example)
        fit(
            branches,
            images,
            epochs=self.epochs,
            batch_size=self.batch_size,
            objective=LogitAdjustment(tau=self.tau),
            optimizer=Adam(lr=self.lr, weight_decay=self.weight_decay),
            schedule=Cosine(),
            transforms=[transform for transform in self._built() if isinstance(transform, BatchTransform)],
            run=run.child(self.id),
        )
        return branches.eval()


class TwoBranches(Guarded):
    """A model with a second set of batch norms and a second last linear layer, which answer.

    Args:
        model: the first branch; it is copied.
        guard: the method.
        example: images that the model takes; by default in the shape that the model says.

    Raises:
        UserError: the model ends in no linear layer.
    """

    def __init__(self, model: nn.Module, guard: ABF, example: Float[Tensor, "n c h w"] | None = None):
        super().__init__(model, guard)
        head = classifier_head(self.model, example)
        if head is None:
            raise UserError(f"{guard.id}: the model must end in a linear layer, for a second one to learn beside it.")
        own = {
            name: module
            for name, module in self.model.named_modules()
            if module is head or isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        self.names = tuple(own)
        self.branch = nn.ModuleList(copy.deepcopy(module).requires_grad_(True) for module in own.values())
        self.train(model.training)

    @property
    def detection(self) -> nn.Module:
        """The first branch, as it was trained with outliers."""
        return self.model

    def adaptive(self) -> nn.Module:
        """The second branch passes gradients, and the labels are its own."""
        return self

    def train(self, mode: bool = True) -> TwoBranches:
        """Training mode reaches what the second branch has of its own, and nothing else."""
        super().train(False)
        self.training = mode
        self.branch.train(mode)
        return self

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the second branch."""
        with self._branch_in_place():
            logits: Tensor = self.model(x)
        return logits

    @contextlib.contextmanager
    def _branch_in_place(self) -> Iterator[None]:
        """While the block runs, the second branch's layers stand where the first one's do.

        The modules change places rather than their tensors, so that hooks on a layer see the weights it computes with.
        """
        places: list[tuple[dict[str, nn.Module | None], str]] = []
        for name in self.names:
            parent, _, last = name.rpartition(".")
            places.append((self.model.get_submodule(parent)._modules, last))
        first = [modules[last] for modules, last in places]
        try:
            for (modules, last), module in zip(places, self.branch, strict=True):
                modules[last] = module
            yield
        finally:
            for (modules, last), kept in zip(places, first, strict=True):
                modules[last] = kept
