"""MobileNetV2 for small images: inverted residuals with linear bottlenecks.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, arXiv:1801.04381, table 2. For
32x32 images the first convolution and the second stage keep the resolution, as is usual on CIFAR; the weights are the
same: 3,504,872 with 1000 classes (the paper's 3.4M), 2,236,682 with ten.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from holdfast.models.initialise import he_normal

__all__ = ["InvertedResidual", "MobileNetV2"]

# Table 2 of the paper: expansion, channels, blocks, stride of the first block (2 -> 1 in the second row, see above).
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel by a 3x3 one, project back without an activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.expand = _conv_bn_relu6(inputs, hidden, 1) if expansion != 1 else nn.Identity()
        self.depthwise = _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden)
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        """The block, with a shortcut where the shape stays."""
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals between a 3x3 and a 1x1 convolution.

    Args:
        num_classes, image_shape, normalize: see `build_model`.
    """

    def __init__(self, *, num_classes: int, image_shape: tuple[int, int, int], normalize: nn.Module):
        super().__init__()
        self.normalize = normalize
        self.stem = _conv_bn_relu6(image_shape[0], 32, 3)
        blocks: list[nn.Module] = []
        channels = 32
        for expansion, outputs, count, stride in _STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(channels, outputs, stride if index == 0 else 1, expansion))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = _conv_bn_relu6(channels, 1280, 1)
        self.fc = nn.Linear(1280, num_classes)
        he_normal(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        x = self.last(self.blocks(self.stem(self.normalize(x))))
        return self.fc(x.mean((2, 3)))


def _conv_bn_relu6(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )
