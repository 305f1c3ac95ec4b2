import math

import pytest
import torch

from holdfast.ood import ASH, SCALE, fit_on_features
from holdfast.ood.scale import strongest


def fitted(real, method):
    (detector,) = fit_on_features([method], real.train, real.head).values()
    return detector


@pytest.mark.parametrize("percentile", [0, 40, 85, 99])
def test_the_score_is_the_energy_of_the_scaled_activations(real, percentile):
    count = max(1, 128 - round(128 * percentile / 100))
    expected = []
    for h in real.test.penultimate.double():
        factor = math.exp(h.sum() / h.sort(descending=True).values[:count].sum())
        expected.append(-(real.head.weight.double() @ (factor * h) + real.head.bias.double()).logsumexp(0))
    scores = fitted(real, SCALE(percentile=percentile)).score(real.test)
    torch.testing.assert_close(scores, torch.stack(expected).detach(), atol=1e-4, rtol=1e-5)


def test_the_factor_is_e_where_all_units_count_as_strong(real):
    bias = real.head.bias.detach().double()
    logits = math.e * (real.test.logits.double() - bias) + bias
    assert torch.allclose(fitted(real, SCALE(percentile=0)).score(real.test), -logits.logsumexp(1), atol=1e-4)


def test_with_nothing_to_prune_it_is_ash(real):
    """Where only as many units fire as count as strong, pruning takes zeros away."""
    h = torch.zeros(200, 128)
    h[:, :10] = real.test.penultimate[:, :10] + 0.1
    sparse = real.but(real.test, h)
    scores = fitted(real, SCALE(percentile=85)).score(sparse)
    assert torch.allclose(scores, fitted(real, ASH(percentile=85)).score(sparse), atol=1e-4)


def test_features_that_are_all_zero_get_the_energy_of_the_bias(real):
    scores = fitted(real, SCALE()).score(real.but(real.test, torch.zeros(200, 128)))
    assert torch.allclose(scores, -real.head.bias.detach().double().logsumexp(0).expand(200))


@pytest.mark.parametrize(("percentile", "count"), [(0, 128), (50, 64), (85, 19), (90, 13), (99.9, 1)])
def test_at_least_one_unit_is_strong(percentile, count):
    values, positions = strongest(torch.rand(3, 128), percentile)
    assert values.shape == positions.shape == (3, count)
