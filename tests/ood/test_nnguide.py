import pytest
import torch

from holdfast.errors import UserError
from holdfast.ood import NNGuide, fit_on_features


def fitted(real, **fields):
    (detector,) = fit_on_features([NNGuide(**fields)], real.train, real.head).values()
    return detector


def unit(h):
    return h.double() / h.double().norm(dim=1, keepdim=True)


@pytest.mark.parametrize("k", [1, 10, 600])
def test_the_score_is_energy_times_the_mean_similarity_to_the_nearest_of_the_bank(real, k):
    bank = unit(real.train.penultimate) * real.train.logits.double().logsumexp(1)[:, None]
    similarities = (unit(real.test.penultimate) @ bank.T).sort(dim=1, descending=True).values[:, :k]
    expected = -real.test.logits.double().logsumexp(1) * similarities.mean(1)
    torch.testing.assert_close(fitted(real, k=k, fraction=1).score(real.test), expected, atol=1e-3, rtol=1e-5)


def test_with_all_the_bank_the_guidance_is_the_similarity_to_its_mean(real):
    detector = fitted(real, k=600, fraction=1)
    expected = -real.test.logits.double().logsumexp(1) * (
        unit(real.test.penultimate) @ detector.state["bank"].double().mean(0)
    )
    torch.testing.assert_close(detector.score(real.test), expected, atol=1e-3, rtol=1e-5)


def test_the_bank_is_a_fixed_random_subset_of_at_least_k(real):
    assert len(fitted(real, k=5, fraction=0.1).state["bank"]) == 60
    assert len(fitted(real, k=5, fraction=0.001).state["bank"]) == 5
    first, again = (fitted(real, k=5, fraction=0.1).state["bank"] for _ in range(2))
    assert torch.equal(first, again)
    whole = fitted(real, k=5, fraction=1).state["bank"]
    rows = [int((whole == row).all(1).nonzero()[0]) for row in first]
    assert rows == sorted(set(rows))
    assert max(rows) > 500


def test_more_neighbours_than_training_features_are_refused(real):
    with pytest.raises(UserError, match="nnguide: k must be at most the 600 training features, got 601"):
        fitted(real, k=601)
