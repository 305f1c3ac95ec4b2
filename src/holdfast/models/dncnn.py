"""DnCNN: a plain convolutional network that predicts what to take away from an image to clean it.

Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", IEEE Transactions on
Image Processing 2017, arXiv:1608.03981.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.errors import UserError

__all__ = ["DnCNN"]


class DnCNN(nn.Module):
    """Images to images, no classifier: ``x - net(x)``, where net is 3x3 convolutions, batch norm and ReLU.

    A new one is the identity to the last bit, since its last convolution begins at zero; the others begin orthogonal.
    Any image size will do. Train it in train mode and use it in eval mode, as batch norm asks.

    Args:
        channels: of the images.
        depth: convolutions, at least 2; batch norm follows all but the first and the last.
        width: channels between them.
        rng: where the starting weights are drawn from; global generators are left alone.
    """

    def __init__(self, channels: int, *, depth: int = 17, width: int = 64, rng: torch.Generator | None = None):
        super().__init__()
        for name, value, least in (("channels", channels, 1), ("depth", depth, 2), ("width", width, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"dncnn: {name} must be a whole number of at least {least}, got {value!r}.")
        layers: list[nn.Module] = [_convolution(channels, width, bias=True), nn.ReLU()]
        for _ in range(depth - 2):
            # The usual code hands PyTorch a momentum of 0.95, where the number is the weight of the newest batch: in
            # use, statistics would be those of the last batch alone. A decay of 0.95 is what was meant.
            layers += [
                _convolution(width, width, bias=False),
                nn.BatchNorm2d(width, eps=1e-4, momentum=0.05),
                nn.ReLU(),
            ]
        self.net = nn.Sequential(*layers, _convolution(width, channels, bias=False))
        self.initialise(torch.Generator() if rng is None else rng)

    def initialise(self, rng: torch.Generator) -> None:
        """Begin again from fresh weights, as the identity."""
        last = self.net[-1]
        for module in self.net:
            if isinstance(module, nn.Conv2d):
                if module is last:
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.orthogonal_(module.weight, generator=rng)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The images without what the network takes for noise; not clamped."""
        return x - self.net(x)


def _convolution(inputs: int, outputs: int, *, bias: bool) -> nn.Conv2d:
    """A 3x3 convolution whose weights are yet to be set."""
    made: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, inputs, outputs, 3, padding=1, bias=bias)
    return made
