"""A small convolutional network for small tasks: digits, toy data, quick tests."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast.models.initialise import he_normal

__all__ = ["ConvNet"]


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, batch norm, ReLU, with a pooling after each but the last; then one linear layer.

    Args:
        num_classes, image_shape, normalize: see `build_model`.
        width: channels of the first block; each further block has twice as many.
        blocks: number of blocks.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        width: Annotated[int, Field(ge=1)] = 32,
        blocks: Annotated[int, Field(ge=1, le=8)] = 3,
    ):
        super().__init__()
        self.normalize = normalize
        layers: list[nn.Module] = []
        channels = image_shape[0]
        for index in range(blocks):
            if index:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            outputs = width * 2**index
            layers += [nn.Conv2d(channels, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        he_normal(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        return self.fc(self.features(self.normalize(x)).mean((2, 3)))
