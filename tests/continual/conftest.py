import pytest
import torch

from holdfast.continual import Memory, Request, identified
from holdfast.data import Images, load_data
from holdfast.models import build_model
from holdfast.run import Run


@pytest.fixture(scope="session")
def digits():
    return load_data("digits")


@pytest.fixture(scope="session")
def train(digits):
    """With ids."""
    return identified(digits.train)


@pytest.fixture
def task(train):
    """Makes requests to learn the first images of some classes."""

    def make(*classes, count=48):
        where = torch.isin(train.y, torch.tensor(classes)).nonzero().flatten()[:count]
        return Request(learn=train.select(where))

    return make


@pytest.fixture
def model(digits):
    """Without batch norm, so that batches may be cut at will."""
    return build_model("mlp(hidden=[16])", num_classes=10, image_shape=digits.shape, run=Run())


@pytest.fixture
def convolutional(digits):
    """With batch norm."""
    return build_model("convnet(width=4)", num_classes=10, image_shape=digits.shape, run=Run())


@pytest.fixture(scope="session")
def tiny():
    """Makes images, one for each id; the id is in the pixels as well."""

    def make(ids):
        ids = torch.as_tensor(ids, dtype=torch.int64)
        x = ids[:, None, None, None].expand(-1, 1, 2, 2).to(torch.uint8).clone()
        return Images(x=x, y=ids % 3, classes=("a", "b", "c"), columns={"id": ids})

    return make


@pytest.fixture
def filled(train, digits):
    """A memory of 20 images of classes 0 and 1, with logits of its own."""
    images = train.select((train.y < 2).nonzero().flatten()[-20:])
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    return Memory.empty(20, train).insert(images, lambda images: logits, rng=torch.Generator())
