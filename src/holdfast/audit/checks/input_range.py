"""Whether the model was made for images in [0, 1], or silently expects another scaling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy, rate
from holdfast.audit.findings import Action, Metric, Table
from holdfast.audit.subject import Subject
from holdfast.data import to_float

__all__ = ["InputRange"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class InputRange(Check):
    """Accuracy on images in [0, 1] against accuracy on the same images scaled as other code bases do.

    A model that is clearly better on one of those lacks its normalisation, and everything measured on it is wrong.

    Args:
        images: at most so many.
    """

    id = "input-range"
    section = "sanity"
    title = "Input range"
    question = "Does it expect images in [0, 1]?"

    images: int = 512

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        images = subject.first(self.images)
        x = to_float(images.x)
        right = {name: subject.respond(scaled).argmax(1) == images.y for name, scaled in _scalings(x).items()}
        plain = right.pop("[0, 1]")
        best = max(right, key=lambda name: int(right[name].sum()))
        low, high = stats.newcombe_paired(right[best].numpy(), plain.numpy())
        low_value, high_value = (float(v) for v in torch.aminmax(x))
        rows: list[list[str | float | int | None]] = [
            [name, float(hits.double().mean())] for name, hits in {"[0, 1]": plain, **right}.items()
        ]
        return Answer(
            metrics=[
                Metric(
                    name="accuracy-gain",
                    value=float(right[best].double().mean() - plain.double().mean()),
                    low=low,
                    high=high,
                    n=len(images),
                    unit="points",
                    better="lower",
                    title=f"Accuracy gained by scaling the pixels to {best}",
                ),
                rate("accuracy-in-range", plain, title="Accuracy on images in [0, 1]"),
                Metric(name="smallest-pixel", value=low_value, n=len(images), title="Smallest pixel value"),
                Metric(name="largest-pixel", value=high_value, n=len(images), title="Largest pixel value"),
            ],
            figures=[
                Table(title="Accuracy by scaling", columns=["pixels", "accuracy"], rows=rows, percent=["accuracy"])
            ],
            remedies=[
                Remedy(
                    Action(
                        text=f"Make the scaling to {best} the model's own first layer (holdfast.models.Normalize), and "
                        "audit again; nothing else here holds for the model as it was meant."
                    ),
                    when="accuracy-gain",
                )
            ],
            settings={"images": len(images)},
        )


def _scalings(x: Tensor) -> dict[str, Tensor]:
    """The same images as code bases around would scale them."""
    scaled = {"[0, 1]": x, "[0, 255]": 255 * x, "[-1, 1]": 2 * x - 1}
    spread = x.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6)
    scaled["mean 0, deviation 1"] = (x - x.mean(dim=(0, 2, 3), keepdim=True)) / spread
    if x.shape[1] == 3:
        mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in _IMAGENET)
        scaled["ImageNet's mean and deviation"] = (x - mean) / deviation
        scaled["[0, 1], channels reversed"] = x.flip(1)
    return scaled
