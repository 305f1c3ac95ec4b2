"""What the detectors' tests share: real features, with the last layer that reads them."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from holdfast.data import load_data
from holdfast.models import Features, classifier_head, extract, load_model
from holdfast.run import Run


@dataclass(frozen=True)
class RealFeatures:
    """Of the bundled model for digits.

    Args:
        train: of 600 training images.
        test: of 200 others.
        noise: of 200 images of uniform noise.
        head: the model's last layer.
    """

    train: Features
    test: Features
    noise: Features
    head: nn.Linear

    def but(self, features: Features, h: torch.Tensor) -> Features:
        """Other penultimate features, with the logits that the head makes of them."""
        with torch.no_grad():
            return Features(logits=self.head(h), penultimate=h, y=features.y)


@pytest.fixture(scope="session")
def real():
    data, model, run = load_data("digits"), load_model("zoo:digits-convnet"), Run()
    test = data.test.select(slice(0, 200))
    noise = test.but(x=torch.rand(test.x.shape, generator=torch.Generator().manual_seed(0)))
    sets = (data.train.select(slice(0, 600)), test, noise)
    return RealFeatures(*(extract(model, images, run=run) for images in sets), classifier_head(model))
