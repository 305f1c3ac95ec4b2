"""ResNet for small images: three stages of 16, 32 and 64 channels, parameter-free shortcuts.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, section 4.2, shortcut option A.
With ten classes resnet20 has 269,722 parameters, resnet32 464,154, resnet56 853,018 (the paper's 0.27M, 0.46M, 0.85M).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.models.initialise import he_normal

__all__ = ["BasicBlock", "ResNet"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut subsamples and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.widened = outputs - inputs

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        """Residual plus shortcut."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every `stride`-th pixel; new channels are zero, half of them before the old ones, half after."""
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.widened:
            before = self.widened // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.widened - before))
        return x


class ResNet(nn.Module):
    """A residual network of `depth` = 6n + 2 layers.

    Args:
        depth: 20, 32, 44, 56 or 110 in the paper.
        num_classes, image_shape, normalize: see `build_model`.
        width: channels of the first stage.
    """

    def __init__(
        self, depth: int, *, num_classes: int, image_shape: tuple[int, int, int], normalize: nn.Module, width: int = 16
    ):
        super().__init__()
        blocks = (depth - 2) // 6
        self.normalize = normalize
        self.conv1 = nn.Conv2d(image_shape[0], width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.fc = nn.Linear(4 * width, num_classes)
        he_normal(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        x = F.relu(self.bn1(self.conv1(self.normalize(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
