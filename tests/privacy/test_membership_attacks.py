import pytest
import torch

from holdfast import stats
from holdfast.models import Features
from holdfast.privacy import ConfidenceMIA, LossMIA


@pytest.fixture
def features():
    rng = torch.Generator().manual_seed(0)
    return Features(logits=4 * torch.randn(300, 5, generator=rng), y=torch.randint(5, (300,), generator=rng))


def test_the_loss_score_is_minus_the_cross_entropy(features):
    expected = -torch.nn.functional.cross_entropy(features.logits.double(), features.y, reduction="none")
    assert torch.allclose(LossMIA().score(features), expected, atol=1e-12)


def test_the_confidence_score_ranks_as_the_largest_probability(features):
    scores = ConfidenceMIA().score(features)
    assert torch.allclose(torch.sigmoid(scores), features.logits.double().softmax(1).amax(1))


def test_confidence_does_not_read_the_label(features):
    other = Features(logits=features.logits, y=(features.y + 1) % 5)
    assert torch.equal(ConfidenceMIA().score(features), ConfidenceMIA().score(other))
    assert not torch.equal(LossMIA().score(features), LossMIA().score(other))


@pytest.mark.parametrize("attack", [ConfidenceMIA(), LossMIA()])
def test_losses_far_below_rounding_keep_their_rank(attack):
    gaps = torch.tensor([20.0, 40.0, 100.0, 400.0, 650.0])
    logits = torch.stack([gaps, torch.zeros(5)], 1)
    scores = attack.score(Features(logits=logits, y=torch.zeros(5, dtype=torch.int64)))
    assert (scores.diff() > 0).all()
    assert torch.isfinite(scores).all()


def test_the_loss_of_a_tiny_probability_is_exact():
    features = Features(logits=torch.tensor([[-2000.0, 0.0]]), y=torch.tensor([0]))
    assert LossMIA().score(features).item() == -2000


@pytest.mark.parametrize("attack", [ConfidenceMIA(), LossMIA()])
def test_memorised_images_score_higher(attack):
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(5, (500,), generator=rng)
    seen = torch.randn(500, 5, generator=rng) + 6 * torch.nn.functional.one_hot(y, 5)
    unseen = torch.randn(500, 5, generator=rng) + 2 * torch.nn.functional.one_hot(y, 5)
    members, others = (attack.score(Features(logits=z, y=y)) for z in (seen, unseen))
    assert stats.auroc(others, members) > 0.9
