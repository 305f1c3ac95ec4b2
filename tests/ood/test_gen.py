import math

import pytest
import torch

from holdfast.models import Features
from holdfast.ood import GEN


def of(logits):
    logits = torch.as_tensor(logits)
    return Features(logits=logits, y=torch.zeros(len(logits), dtype=torch.int64))


@pytest.mark.parametrize(("gamma", "top"), [(0.1, 100), (0.1, 4), (1.0, 100), (3.0, 1)])
def test_the_score_is_the_sum_over_the_likeliest_classes(gamma, top):
    logits = 3 * torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    expected = []
    for row in logits.tolist():
        p = sorted((math.exp(z) / sum(math.exp(y) for y in row) for z in row), reverse=True)[:top]
        expected.append(sum((q * (1 - q)) ** gamma for q in p))
    assert torch.allclose(GEN(gamma=gamma, top=top).score(of(logits), {}), torch.tensor(expected).double())


def test_one_hot_gives_zero_and_even_belief_the_most():
    assert GEN().score(of([[2000.0, 0.0, 0.0]]), {}).item() == 0
    even = GEN(gamma=1).score(of(torch.zeros(1, 5)), {}).item()
    assert even == pytest.approx(1 - 1 / 5)  # Gini's index
    assert (GEN(gamma=1).score(of(torch.randn(50, 5)), {}) < even).all()


def test_what_the_top_probability_lacks_to_one_is_not_lost_to_rounding():
    """With two classes, (p (1 - p))^gamma counts twice: once for either."""
    gap = 60.0  # 1 - p is exp(-60), of which 1 - p in float64 holds nothing
    assert GEN().score(of([[gap, 0.0]]), {}).item() == pytest.approx(2 * math.exp(-gap * 0.1), rel=1e-9)


def test_the_order_of_the_classes_does_not_matter():
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(GEN().score(of(logits.flip(1)), {}), GEN().score(of(logits), {}))
