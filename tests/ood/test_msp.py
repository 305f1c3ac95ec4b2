import pytest
import torch

from holdfast.models import Features
from holdfast.ood import MSP


def of(logits):
    logits = torch.as_tensor(logits)
    return Features(logits=logits, y=torch.zeros(len(logits), dtype=torch.int64))


def test_the_order_is_that_of_the_softmax_probability():
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    scores = MSP().score(of(logits), {})
    confidence = logits.double().softmax(1).amax(1)
    assert torch.equal(scores.argsort(), confidence.argsort(descending=True))
    assert torch.allclose(torch.sigmoid(-scores), confidence)


def test_confidences_that_round_to_one_still_differ():
    scores = MSP().score(of([[40.0, 0.0, 0.0], [50.0, 0.0, 0.0], [300.0, 0.0, 0.0]]), {})
    assert scores[0] > scores[1] > scores[2]
    assert scores[1] == pytest.approx(-50 + torch.log(torch.tensor(2.0)).item())


def test_a_constant_added_to_all_logits_changes_nothing():
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(1)).double()
    assert torch.allclose(MSP().score(of(logits), {}), MSP().score(of(logits + 1000), {}), atol=1e-9)


def test_two_equal_top_logits_are_odds_of_one_half_each():
    assert MSP().score(of([[3.0, 3.0]]), {}).item() == 0


def test_temperature_divides_the_logits():
    logits = torch.tensor([[4.0, 1.0, -2.0]])
    assert torch.allclose(MSP(temperature=4).score(of(logits), {}), MSP().score(of(logits / 4), {}))
