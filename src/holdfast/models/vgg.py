"""VGG with batch norm for small images: the convolutions of the paper, then one linear layer.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, arXiv:1409.1556,
configurations A, B, D and E. On 32x32 images five poolings leave one pixel, so the paper's two hidden layers of 4096
units are left out, as is usual on CIFAR: vgg16-bn has 14,728,266 parameters with ten classes.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from holdfast.models.initialise import he_normal

__all__ = ["VGG"]

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Five groups of 3x3 convolutions, each followed by a pooling that halves the image.

    Args:
        depth: 11, 13, 16 or 19.
        num_classes, image_shape, normalize: see `build_model`. Images smaller than 32x32 work too: a pooling leaves a
            side of one pixel as it is.
    """

    def __init__(self, depth: int, *, num_classes: int, image_shape: tuple[int, int, int], normalize: nn.Module):
        super().__init__()
        self.normalize = normalize
        layers: list[nn.Module] = []
        channels = image_shape[0]
        for width, count in zip(_WIDTHS, _CONVOLUTIONS[depth], strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        he_normal(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        return self.fc(self.features(self.normalize(x)).mean((2, 3)))
