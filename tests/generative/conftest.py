"""What the tests of generative models share: networks that know the answer, and small ones that know nothing."""

import pytest
import torch
from torch import nn

from holdfast.data import Images, load_data
from holdfast.generative import Blueprint, Diffusion, NoiseSchedule, build_diffusion
from holdfast.run import Run


class Knows(nn.Module):
    """The exact noise for data that are normal around a point: sd 0 is the point itself."""

    def __init__(self, schedule, point, sd):
        super().__init__()
        self.schedule, self.sd = schedule, sd
        self.register_buffer("point", point)
        self.calls = 0

    def forward(self, x_t, t, context=None):
        self.calls += 1
        signal, noise = self.schedule.signal(t, x_t), self.schedule.noise(t, x_t)
        gain = signal * self.sd**2 / (signal**2 * self.sd**2 + noise**2)
        x0 = self.point + gain * (x_t - signal * self.point)
        return (x_t - signal * x0) / noise


@pytest.fixture
def exact():
    """Makes diffusion models with the exact answer."""

    def make(sd=0.0, *, shape=(1, 4, 4), double=True, **schedule):
        plan = NoiseSchedule(**schedule)
        point = 0.8 * torch.rand(1, *shape, generator=torch.Generator().manual_seed(1)) - 0.4
        model = Diffusion(Knows(plan, point.double() if double else point, sd), plan, image_shape=shape)
        return model.eval()

    return make


def shaken(model, seed=0):
    """The model with no weight left at zero, as if it had learnt something."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=rng))
    return model.eval()


@pytest.fixture
def by_class():
    """An untrained model told four classes, whose weights are all random."""
    blueprint = Blueprint(image_shape=(1, 8, 8), width=8, classes=("a", "b", "c", "d"), steps=20)
    return shaken(build_diffusion(blueprint, run=Run()))


@pytest.fixture
def by_text():
    """One told texts of a few words."""
    texts = {"words": ("blue", "disc", "red", "star"), "length": 6, "dim": 16}
    blueprint = Blueprint(image_shape=(3, 8, 8), width=8, cross_attention=(0, 1), heads=2, texts=texts, steps=20)
    return shaken(build_diffusion(blueprint, run=Run()))


@pytest.fixture(scope="session")
def digits():
    return load_data("digits")


@pytest.fixture
def captioned():
    """Random bytes with captions."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=rng)
    captions = [f"a picture of a {colour} {shape}" for colour in ("red", "blue") for shape in ("disc", "star")] * 6
    return Images(x=x, y=torch.arange(24) % 2, classes=("disc", "star"), columns={"caption": captions}, name="few")
