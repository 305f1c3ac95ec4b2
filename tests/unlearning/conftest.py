import pytest

from holdfast.data import load_data
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
