import math

import pytest
import torch

from holdfast.models import Features
from holdfast.ood import ASH, Energy, fit_on_features


def fitted(real, **fields):
    (detector,) = fit_on_features([ASH(**fields)], real.train, real.head).values()
    return detector


def shaped(h, variant, percentile):
    """The published procedure, a row at a time."""
    d = len(h)
    count = d - round(d * percentile / 100)
    strong = sorted(range(d), key=lambda i: -h[i])[:count]
    before, after = sum(h), sum(h[i] for i in strong)
    factor = {"p": 1.0, "s": math.exp(before / after), "b": None}[variant]
    return [(before / count if factor is None else h[i] * factor) if i in strong else 0.0 for i in range(d)]


@pytest.mark.parametrize("variant", ["p", "b", "s"])
@pytest.mark.parametrize("percentile", [30, 65, 90])
def test_the_score_is_the_energy_of_the_shaped_activations(real, variant, percentile):
    # Features without ties: which of several equal activations is pruned is left open.
    h = real.test.penultimate[:30] + 1e-3 * torch.rand(30, 128, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([shaped(row.tolist(), variant, percentile) for row in h]).double()
    logits = rows @ real.head.weight.detach().double().T + real.head.bias.detach().double()
    scores = fitted(real, variant=variant, percentile=percentile).score(real.but(real.test.select(slice(0, 30)), h))
    torch.testing.assert_close(scores, -logits.logsumexp(1), atol=1e-4, rtol=1e-5)


def test_with_nothing_pruned_p_is_the_energy_and_s_multiplies_the_logits_without_bias_by_e(real):
    energy = Energy().score(real.test, {})
    assert torch.allclose(fitted(real, variant="p", percentile=0).score(real.test), energy, atol=1e-4)
    bias = real.head.bias.detach().double()
    logits = math.e * (real.test.logits.double() - bias) + bias
    assert torch.allclose(fitted(real, percentile=0).score(real.test), -logits.logsumexp(1), atol=1e-4)


def test_b_reads_only_which_units_are_strong_and_the_sum(real):
    detector = fitted(real, variant="b", percentile=50)
    h = torch.arange(128.0).expand(2, -1).clone()
    h[1, 40], h[1, 50] = h[1, 40] + 0.4, h[1, 50] - 0.4
    scores = detector.score(Features(logits=torch.zeros(2, 10), penultimate=h, y=torch.zeros(2, dtype=torch.int64)))
    assert scores[0] == pytest.approx(scores[1].item(), abs=1e-4)


@pytest.mark.parametrize("variant", ["p", "b", "s"])
def test_features_are_not_written_to_and_zeros_get_the_energy_of_the_bias(real, variant):
    h = real.test.penultimate.clone()
    h[0] = 0
    given = real.but(real.test, h.clone())
    scores = fitted(real, variant=variant).score(given)
    assert torch.equal(given.penultimate, h)
    assert scores[0] == pytest.approx(-real.head.bias.detach().double().logsumexp(0).item(), abs=1e-5)


def test_a_factor_that_float32_cannot_hold_gives_finite_scores_in_order(real):
    h = torch.full((2, 128), 1.0)
    h[1] = 0.9
    h[:, 0] = 1.1
    scores = fitted(real, percentile=99).score(real.but(real.test.select([0, 1]), h))  # factors near exp(115)
    assert torch.isfinite(scores).all()
    assert scores[0] != scores[1]
