"""Wide ResNet: few pre-activation blocks with many channels.

Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146. With ten classes wrn-28-10 has 36,479,194
parameters, wrn-40-2 2,243,546, wrn-16-4 2,748,890 (the paper's 36.5M, 2.2M, 2.8M).
"""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.errors import UserError
from holdfast.models.initialise import he_normal
from holdfast.models.preact_resnet import preact_stage

__all__ = ["WideResNet"]


class WideResNet(nn.Module):
    """Three stages of (depth - 4) / 6 pre-activation blocks with 16, 32 and 64 times `width` channels.

    Args:
        depth: 6n + 4.
        width: the widening factor k.
        num_classes, image_shape, normalize: see `build_model`.
        dropout: between the convolutions of a block; the paper uses 0.3 on CIFAR when it does.

    Raises:
        UserError: the depth is not of that form, or the width is 0.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"wrn-{depth}-{width}: the depth must be 6n + 4 (10, 16, 22, 28, 34, ...), got {depth}.")
        if width < 1:
            raise UserError(f"wrn-{depth}-{width}: the width must be at least 1, got {width}.")
        blocks = (depth - 4) // 6
        self.normalize = normalize
        self.conv1 = nn.Conv2d(image_shape[0], 16, 3, 1, 1, bias=False)
        self.layer1 = preact_stage(16, 16 * width, blocks, 1, dropout)
        self.layer2 = preact_stage(16 * width, 32 * width, blocks, 2, dropout)
        self.layer3 = preact_stage(32 * width, 64 * width, blocks, 2, dropout)
        self.bn = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        he_normal(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        x = self.conv1(self.normalize(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))
