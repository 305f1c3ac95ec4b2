import pytest
import torch

from holdfast.data import load_data
from holdfast.generative import Blueprint, build_diffusion
from holdfast.models import build_model
from holdfast.run import Run
from holdfast.training import SGD, fit


@pytest.fixture(scope="session")
def digits():
    return load_data("digits")


@pytest.fixture(scope="session")
def split(digits):
    """Class 3 is to be forgotten; training images to forget, to retain, and test images of the other classes."""
    forgotten = digits.train.y == 3
    return digits.train.select(forgotten), digits.train.select(~forgotten), digits.test.select(digits.test.y != 3)


@pytest.fixture(scope="session")
def original(digits):
    run = Run(seed=0)
    model = build_model("mlp", num_classes=10, image_shape=digits.shape, run=run)
    return fit(model, digits.train, epochs=6, optimizer=SGD(lr=0.1), run=run).model


@pytest.fixture(scope="session")
def convolutional(digits):
    """With batch norm; trained on all of digits."""
    run = Run(seed=0)
    model = build_model("convnet", num_classes=10, image_shape=digits.shape, run=run)
    return fit(model, digits.train, epochs=5, batch_size=64, optimizer=SGD(lr=0.05), run=run).model


@pytest.fixture(scope="session")
def shaken():
    """Gives a model with no weight left at zero, as if it had learnt something."""

    def shake(model):
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=rng))
        return model.eval()

    return shake


@pytest.fixture
def by_text(shaken):
    """A small diffusion model that is told texts."""
    texts = {"words": ("blue", "disc", "red", "star"), "length": 6, "dim": 16, "layers": 1}
    blueprint = Blueprint(image_shape=(3, 8, 8), width=8, cross_attention=(0, 1), heads=2, texts=texts, steps=20)
    return shaken(build_diffusion(blueprint, run=Run()))
