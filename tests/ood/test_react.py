import numpy as np
import pytest
import torch

from holdfast.ood import Energy, ReAct, fit_on_features


def fitted(real, **fields):
    (detector,) = fit_on_features([ReAct(**fields)], real.train, real.head).values()
    return detector


def test_the_score_is_the_energy_of_activations_cut_off_at_a_percentile_of_all(real):
    limit = np.percentile(real.train.penultimate.flatten().numpy(), 90)
    weight, bias = real.head.weight.detach().double(), real.head.bias.detach().double()
    expected = []
    for h in real.test.penultimate.double():
        logits = [sum(w * min(float(a), limit) for w, a in zip(row, h, strict=True)) for row in weight]
        expected.append(-torch.logsumexp(torch.stack(logits) + bias, 0))
        if len(expected) == 20:
            break
    assert torch.allclose(fitted(real).score(real.test)[:20], torch.stack(expected), atol=1e-4)


def test_at_the_highest_percentile_it_is_the_energy_of_what_it_learnt_from(real):
    scores = fitted(real, percentile=100).score(real.train)
    assert torch.allclose(scores, Energy().score(real.train, {}), atol=1e-4)
    assert not torch.allclose(fitted(real, percentile=80).score(real.train), scores, atol=1e-1)


def test_raising_what_is_above_the_threshold_further_changes_nothing(real):
    detector = fitted(real, percentile=80)
    h = real.test.penultimate
    raised = torch.where(h > detector.state["threshold"], 10 * h, h)
    assert (raised != h).any()
    assert torch.equal(detector.score(real.but(real.test, raised)), detector.score(real.test))


@pytest.mark.parametrize("percentile", [0, 101])
def test_percentiles_are_percentiles(percentile):
    with pytest.raises(Exception, match="react: percentile must be"):
        ReAct(percentile=percentile)
