import pytest
import torch

from holdfast.models import Features
from holdfast.ood import Energy, MaxLogit


@pytest.fixture
def features():
    logits = 3 * torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    return Features(logits=logits, y=torch.zeros(100, dtype=torch.int64))


def but(features, logits):
    return Features(logits=logits, y=features.y)


def test_energy_is_minus_the_log_of_the_summed_exponentials(features):
    expected = -features.logits.double().exp().sum(1).log()
    assert torch.allclose(Energy().score(features, {}), expected, atol=1e-12)


def test_a_low_temperature_gives_the_maximum_logit(features):
    gap = Energy(temperature=1e-3).score(features, {}) - MaxLogit().score(features, {})
    assert gap.abs().max() < 0.01


def test_a_high_temperature_gives_the_mean_logit_up_to_a_constant(features):
    t = 1e5
    score = Energy(temperature=t).score(features, {}) + t * torch.log(torch.tensor(10.0).double())
    assert torch.allclose(score, -features.logits.double().mean(1), atol=1e-3)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits_do_not_overflow(size):
    logits = torch.full((1, 10), size)
    score = Energy().score(Features(logits=logits, y=torch.zeros(1, dtype=torch.int64)), {})
    assert score.item() == pytest.approx(-size - torch.log(torch.tensor(10.0).double()).item())


@pytest.mark.parametrize("detector", [Energy(), Energy(temperature=0.5), MaxLogit()])
def test_adding_a_constant_to_the_logits_shifts_the_score(features, detector):
    shifted = detector.score(but(features, features.logits.double() + 5), {})
    assert torch.allclose(shifted, detector.score(features, {}) - 5, atol=1e-9)
