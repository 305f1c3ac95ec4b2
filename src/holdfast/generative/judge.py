"""A judge: a classifier of several attributes at once, trained on real pictures, that says what generated ones show.

Whether a model draws what it is told cannot be asked of the model. The judge has a head for each attribute, such as
shape and colour, on one network; its accuracy on real pictures bounds what it can say of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.errors import one_of
from holdfast.methods import Objective
from holdfast.models import build_model, predict
from holdfast.run import Run
from holdfast.training import SGD, OneCycle, Step, fit

__all__ = ["Judge", "as_images", "train_judge"]


class Judge(nn.Module):
    """Logits of several attributes, side by side.

    Args:
        attributes: the values of each, by its name; of the first the classes of the images are the values.
        image_shape: of the pictures.
        width: channels of the network's first block.
        run: gives the first weights.
    """

    def __init__(
        self,
        attributes: Mapping[str, Sequence[str]],
        image_shape: tuple[int, int, int],
        *,
        width: int = 32,
        run: Run,
    ):
        super().__init__()
        self.attributes = {name: tuple(values) for name, values in attributes.items()}
        count = sum(map(len, self.attributes.values()))
        self.network = build_model(f"convnet(width={width})", num_classes=count, image_shape=image_shape, run=run)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1], of all attributes in turn."""
        return self.network(x)

    def split(self, logits: Float[Tensor, "n k"]) -> dict[str, Tensor]:
        """The logits of each attribute."""
        parts = logits.split([len(values) for values in self.attributes.values()], dim=1)
        return dict(zip(self.attributes, parts, strict=True))

    def says(self, x: Float[Tensor, "n c h w"], *, run: Run) -> dict[str, Int64[Tensor, " n"]]:
        """The value that it sees of each attribute, by its place among them."""
        logits = self.split(predict(self, as_images(x), run=run))
        return {name: part.argmax(1) for name, part in logits.items()}

    def place(self, attribute: str, value: str) -> int:
        """The place of a value among those of its attribute.

        Raises:
            UserError: there is no such attribute or value.
        """
        if attribute not in self.attributes:
            raise one_of("attribute", attribute, self.attributes)
        if value not in self.attributes[attribute]:
            raise one_of(attribute, value, self.attributes[attribute])
        return self.attributes[attribute].index(value)


def train_judge(
    images: Images,
    columns: Mapping[str, Sequence[str]],
    *,
    attribute: str = "class",
    width: int = 32,
    epochs: int = 10,
    run: Run,
) -> Judge:
    """A judge of the images' classes and of further attributes.

    Args:
        images: real ones.
        columns: the values of each further attribute, by the name of the column of int64 that holds their places.
        attribute: what the classes are called.
        width: see `Judge`.
        epochs: over the images, with SGD and a one-cycle schedule.
        run: see `fit`.
    """
    judge = Judge({attribute: images.classes, **columns}, images.shape, width=width, run=run)
    truth = torch.stack([images.y, *(torch.as_tensor(images.columns[name]) for name in columns)], dim=1)
    fit(
        judge,
        images.with_column("attributes", truth),
        epochs=epochs,
        batch_size=64,
        objective=_AllAttributes(),
        optimizer=SGD(lr=0.05),
        schedule=OneCycle(),
        run=run.but(precision="fp32"),
    )
    return judge


def as_images(x: Float[Tensor, "n c h w"], name: str = "generated images") -> Images:
    """Images in [0, 1] without labels, as what `extract` and `predict` take."""
    return Images(x=x, y=torch.zeros(len(x), dtype=torch.int64), classes=("image",), name=name)


@dataclass(frozen=True)
class _AllAttributes(Objective):
    """The sum of the attributes' cross-entropies; the accuracy that is reported is the first one's."""

    columns: ClassVar[tuple[str, ...]] = ("attributes",)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        assert isinstance(step.model, Judge)
        parts = list(step.model.split(model(x).float()).values())
        step.seen(parts[0])
        truth = step.columns["attributes"].unbind(1)
        return torch.stack([F.cross_entropy(part, t) for part, t in zip(parts, truth, strict=True)]).sum()
