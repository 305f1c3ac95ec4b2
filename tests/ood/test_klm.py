import numpy as np
import pytest
import torch
from scipy.stats import entropy

from holdfast.models import Features
from holdfast.ood import KLMatching


def of(logits):
    return Features(logits=logits, y=torch.zeros(len(logits), dtype=torch.int64))


@pytest.fixture(scope="module")
def sets():
    rng = torch.Generator().manual_seed(0)
    return of(3 * torch.randn(300, 5, generator=rng)), of(3 * torch.randn(40, 5, generator=rng))


def test_the_score_is_the_least_divergence_from_a_typical_posterior(sets):
    known, queries = sets
    p, q = known.logits.double().softmax(1).numpy(), queries.logits.double().softmax(1).numpy()
    typical = [p[p.argmax(1) == c].mean(0) for c in range(5)]
    expected = [min(entropy(row, d) for d in typical) for row in q]
    scores = KLMatching().score(queries, KLMatching().fit_features(known, None))
    np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-12)


def test_a_typical_posterior_scores_0(sets):
    state = KLMatching().fit_features(sets[0], None)
    assert KLMatching().score(of(state["log_typical"] + 4), state).abs().max() < 1e-12


def test_usual_doubt_is_no_anomaly_where_the_softmax_sees_one():
    doubtful = torch.tensor([[2.0, 1.9, -5.0]]).repeat(50, 1)
    certain = torch.tensor([[-5.0, -5.0, 9.0]]).repeat(50, 1)
    state = KLMatching().fit_features(of(torch.cat([doubtful, certain])), None)
    usual, unusual = KLMatching().score(of(torch.tensor([[2.0, 1.9, -5.0], [-5.0, 2.0, 1.9]])), state)
    assert usual < 1e-9
    assert unusual > 0.3


def test_large_logits_stay_finite_and_a_class_never_predicted_is_taken_to_be_certain():
    known = of(torch.tensor([[1000.0, 0.0, -1000.0], [900.0, 0.0, 0.0]]))
    state = KLMatching().fit_features(known, None)
    queries = of(torch.tensor([[0.0, 5000.0, 0.0], [1000.0, 0.0, -1000.0], [10.0, 10.0, 10.0]]))
    scores = KLMatching().score(queries, state)
    assert torch.isfinite(scores).all()
    assert scores[0] == scores[1] == 0
    assert scores[2] > 10
