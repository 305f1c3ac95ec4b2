"""Starting weights of convolutional networks.

He et al., "Delving Deep into Rectifiers", ICCV 2015, arXiv:1502.01852, section 2.2 (backward form, fan-out).
"""

from __future__ import annotations

from torch import nn

__all__ = ["he_normal"]


def he_normal(model: nn.Module) -> None:
    """Set convolutions to He's normal, batch norms to the identity; linear layers keep PyTorch's default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
