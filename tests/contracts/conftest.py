"""Models and images that methods of several kinds are held to their laws on."""

import pytest
import torch
from torch import nn

from holdfast.data import Images


class Small(nn.Module):
    """With batch norm and dropout, whose modes and statistics are easily disturbed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.dropout(self.bn(self.conv(x)).relu().mean((2, 3))))


@pytest.fixture
def touchy():
    """A model in a state of its own: a frozen weight, a gradient, a mode that differs from the rest."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = Small()
    model.bn.eval()
    model.conv.bias.requires_grad_(False)
    model.head.weight.grad = torch.full_like(model.head.weight, 2)
    return model


@pytest.fixture
def few_images():
    rng = torch.Generator().manual_seed(0)
    x = (255 * torch.rand(72, 3, 8, 8, generator=rng)).to(torch.uint8)
    return Images(x=x, y=torch.arange(72) % 4, classes=tuple("abcd"))
