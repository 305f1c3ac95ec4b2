import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast import stats
from holdfast.errors import UserError
from holdfast.models import Features
from holdfast.privacy import ConfidenceMIA, EntropyMIA, LossMIA, ModifiedEntropyMIA
from holdfast.privacy.log_odds import log_odds, log_probabilities

ALL = [ConfidenceMIA(), EntropyMIA(), LossMIA(), ModifiedEntropyMIA()]


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


@pytest.mark.parametrize("attack", ALL)
def test_losses_far_below_rounding_keep_their_rank(attack):
    gaps = torch.tensor([20.0, 40.0, 100.0, 400.0, 650.0])
    if attack.id == "modified-entropy-mia":
        gaps /= 2  # it is the square of what the loss is
    logits = torch.stack([gaps, torch.zeros(5)], 1)
    scores = attack.score(Features(logits=logits, y=torch.zeros(5, dtype=torch.int64)))
    assert (scores.diff() > 0).all()
    assert torch.isfinite(scores).all()


def test_the_loss_of_a_tiny_probability_is_exact():
    features = Features(logits=torch.tensor([[-2000.0, 0.0]]), y=torch.tensor([0]))
    assert LossMIA().score(features).item() == -2000


@pytest.mark.parametrize("attack", ALL)
def test_memorised_images_score_higher(attack):
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(5, (500,), generator=rng)
    seen = torch.randn(500, 5, generator=rng) + 6 * torch.nn.functional.one_hot(y, 5)
    unseen = torch.randn(500, 5, generator=rng) + 2 * torch.nn.functional.one_hot(y, 5)
    members, others = (attack.score(Features(logits=z, y=y)) for z in (seen, unseen))
    assert stats.auroc(others, members) > 0.9


def test_the_entropy_score_is_minus_the_entropy(features):
    expected = -torch.distributions.Categorical(logits=features.logits.double()).entropy()
    assert torch.allclose(EntropyMIA().score(features), expected, atol=1e-12)
    other = Features(logits=features.logits, y=(features.y + 1) % 5)
    assert torch.equal(EntropyMIA().score(features), EntropyMIA().score(other))


def test_the_modified_entropy_is_that_of_its_formula(features):
    for score, logits, y in zip(
        ModifiedEntropyMIA().score(features), features.logits.double(), features.y, strict=True
    ):
        p = logits.softmax(0).tolist()
        expected = -(1 - p[y]) * math.log(p[y]) - sum(q * math.log(1 - q) for i, q in enumerate(p) if i != y)
        assert score.item() == pytest.approx(-expected, rel=1e-9)


@given(st.integers(2, 6), st.integers(0, 10**6))
def test_modified_entropy_falls_as_the_label_gains_on_all_others(classes, seed):
    rng = torch.Generator().manual_seed(seed)
    start = 3 * torch.randn(classes, generator=rng)
    gains = torch.linspace(-30, 60, 50)
    logits = start.repeat(50, 1)
    logits[:, 0] += gains
    scores = ModifiedEntropyMIA().score(Features(logits=logits, y=torch.zeros(50, dtype=torch.int64)))
    assert (scores.diff() > 0).all()
    assert (scores <= 0).all()


@pytest.mark.parametrize("attack", [EntropyMIA(), LossMIA(), ModifiedEntropyMIA()])
def test_all_probability_on_the_label_scores_zero(attack):
    features = Features(logits=torch.tensor([[2000.0, 0.0, 0.0]]), y=torch.tensor([0]))
    assert attack.score(features).item() == 0


def test_all_probability_on_another_class_is_exact_too():
    features = Features(logits=torch.tensor([[-2000.0, 0.0, -5000.0]]), y=torch.tensor([0]))
    # -(1 - 0) log p_y = 2000, and -1 log(1 - p_1) = 2000, where 1 - p_1 rounds to 0.
    assert ModifiedEntropyMIA().score(features).item() == -4000
    assert EntropyMIA().score(features).item() == 0


def test_log_probabilities_are_exact_where_plain_formulas_cancel():
    log_p, log_rest = log_probabilities(torch.tensor([[60.0, 0.0, 0.0], [0.5, 0.25, -3.0]]))
    small = 2 * math.exp(-60)
    assert log_p[0, 0].item() == pytest.approx(-small, rel=1e-12)
    assert log_rest[0, 0].item() == pytest.approx(math.log(small), rel=1e-12)
    assert log_rest[0, 1].item() == pytest.approx(-math.exp(-60), rel=1e-12)
    assert torch.allclose(log_p.exp() + log_rest.exp(), torch.ones(2, 3, dtype=torch.float64), atol=1e-15)


def test_log_odds_are_those_of_the_probability():
    # Logarithms of whole numbers: the probabilities are fractions.
    odds = log_odds(torch.tensor([[1.0, 3.0, 4.0]]).log(), torch.tensor([1]))
    p = Fraction(3, 8)
    assert odds.item() == pytest.approx(math.log(p / (1 - p)), rel=1e-6)
    assert torch.sigmoid(odds).item() == pytest.approx(3 / 8, rel=1e-6)


@pytest.mark.parametrize("attack", ALL)
def test_a_score_does_not_depend_on_the_others(attack, features):
    whole = attack.score(features)
    parts = [attack.score(features.select(slice(i, i + 70))) for i in range(0, 300, 70)]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-13, atol=0)


@pytest.mark.parametrize("attack", ALL)
def test_what_has_no_meaning_is_refused(attack):
    nan = Features(logits=torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), y=torch.tensor([0, 1]))
    with pytest.raises(UserError, match="logits of 1 of 2 images are not finite"):
        attack.score(nan)
    with pytest.raises(UserError, match="single class"):
        attack.score(Features(logits=torch.zeros(2, 1), y=torch.zeros(2, dtype=torch.int64)))
