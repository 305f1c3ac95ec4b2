"""Pre-activation ResNet for small images: batch norm and ReLU come before each convolution.

He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv:1603.05027, in the 64 to 512 channel form
that the robustness literature uses on CIFAR. preact-resnet18 has 11,172,170 parameters with ten classes.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.models.initialise import he_normal

__all__ = ["PreActBlock", "PreActResNet"]

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class PreActBlock(nn.Module):
    """Batch norm, ReLU, 3x3 convolution, twice; where the shape changes, a 1x1 convolution makes the shortcut.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution and the shortcut.
        dropout: probability of zeroing an activation between the convolutions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float = 0.0):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        """Residual plus shortcut; a projecting shortcut takes the activated input."""
        active = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        out = self.conv1(active)
        out = self.conv2(self.dropout(F.relu(self.bn2(out))))
        return out + shortcut


class PreActResNet(nn.Module):
    """Four stages of pre-activation blocks.

    Args:
        depth: 18 or 34.
        num_classes, image_shape, normalize: see `build_model`.
    """

    def __init__(self, depth: int, *, num_classes: int, image_shape: tuple[int, int, int], normalize: nn.Module):
        super().__init__()
        self.normalize = normalize
        self.conv1 = nn.Conv2d(image_shape[0], 64, 3, 1, 1, bias=False)
        one, two, three, four = _BLOCKS[depth]
        self.layer1 = preact_stage(64, 64, one, stride=1)
        self.layer2 = preact_stage(64, 128, two, stride=2)
        self.layer3 = preact_stage(128, 256, three, stride=2)
        self.layer4 = preact_stage(256, 512, four, stride=2)
        self.bn = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512, num_classes)
        he_normal(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        x = self.conv1(self.normalize(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


def preact_stage(inputs: int, outputs: int, blocks: int, stride: int, dropout: float = 0.0) -> nn.Sequential:
    """`blocks` pre-activation blocks, of which the first changes the shape."""
    first = PreActBlock(inputs, outputs, stride, dropout)
    return nn.Sequential(first, *(PreActBlock(outputs, outputs, 1, dropout) for _ in range(blocks - 1)))
