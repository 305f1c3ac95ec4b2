import math

import pytest
import torch
from scipy.stats import entropy

from holdfast.models import Features
from holdfast.ood import Entropy


def of(logits):
    logits = torch.as_tensor(logits)
    return Features(logits=logits, y=torch.zeros(len(logits), dtype=torch.int64))


def test_it_is_shannons():
    logits = 4 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    expected = entropy(logits.double().softmax(1).numpy(), axis=1)
    assert torch.allclose(Entropy().score(of(logits), {}), torch.from_numpy(expected))


def test_certainty_has_none_and_even_belief_the_logarithm_of_the_classes():
    scores = Entropy().score(of([[5000.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), {})
    assert scores[0].item() == 0
    assert scores[1].item() == pytest.approx(math.log(3))
