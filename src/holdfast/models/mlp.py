"""A multilayer perceptron on the flattened image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError

__all__ = ["MLP"]


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        num_classes, image_shape, normalize: see `build_model`.
        hidden: units of each hidden layer.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        hidden: Sequence[Annotated[int, Field(ge=1)]] = (256, 256),
    ):
        super().__init__()
        self.normalize = normalize
        self.pixels = image_shape
        layers: list[nn.Module] = []
        units = math.prod(image_shape)
        for outputs in hidden:
            layers += [nn.Linear(units, outputs), nn.ReLU()]
            units = outputs
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(units, num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1].

        Raises:
            UserError: the images have another shape than the model was built for.
        """
        if x.shape[1:] != self.pixels:
            raise UserError(f"this mlp was built for images of shape {self.pixels}, got {tuple(x.shape[1:])}.")
        return self.fc(self.hidden(self.normalize(x).flatten(1)))
