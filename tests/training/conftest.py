import pytest
import torch
from torch import nn

from holdfast.data import Images, load_data


@pytest.fixture(scope="session")
def digits():
    return load_data("digits")


@pytest.fixture
def noise():
    """Random bytes: 48 grey 8x8 images of 4 classes."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (48, 1, 8, 8), dtype=torch.uint8, generator=rng)
    return Images(x=x, y=torch.arange(48) % 4, classes=("a", "b", "c", "d"), name="noise")


@pytest.fixture
def linear():
    """Makes equal linear models: no batch norm, so batches may be cut at will."""

    def make(inputs=64, classes=4):
        model = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, classes))
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=rng) * 0.2)
        return model

    return make


@pytest.fixture
def convolutional():
    """Makes equal small convolutional models with batch norm."""

    def make(classes=4, dropout=0.0):
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        )
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=rng) * 0.2)
        return model

    return make
