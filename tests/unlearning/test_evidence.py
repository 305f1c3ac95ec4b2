import math

import pytest
import torch

from holdfast.errors import UserError
from holdfast.models import Features
from holdfast.unlearning import Forgetting, average_gap, divergences, forgetting, mia_nonmember_rate


def features(n, confidence, seed=0, k=4, wrong=0):
    """Features whose true label gets about the given probability; the first `wrong` ones are misclassified."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(k, (n,), generator=rng)
    p = (confidence + 0.02 * torch.randn(n, generator=rng)).clamp(0.01, 0.99)
    logits = torch.zeros(n, k)
    logits[torch.arange(n), y] = (p * (k - 1) / (1 - p)).log()
    logits[torch.arange(wrong), (y[:wrong] + 1) % k] = 20
    return Features(logits=logits, y=y)


def test_the_four_measures():
    measured = forgetting(
        forget=features(50, 0.6, wrong=10), retain=features(300, 0.95, seed=1, wrong=3), test=features(200, 0.6, seed=2)
    )
    assert (measured.ua, measured.ra, measured.ta) == pytest.approx((10 / 50, 297 / 300, 1))


def test_forgotten_images_look_unseen_and_remembered_ones_do_not():
    retain, test = features(400, 0.95, seed=1), features(200, 0.6, seed=2)
    assert mia_nonmember_rate(features(100, 0.6, seed=3), retain, test) > 0.95
    assert mia_nonmember_rate(features(100, 0.95, seed=4), retain, test) < 0.05


def test_members_and_non_members_are_balanced():
    # With 20 times as many members an unbalanced attack would call everything a member.
    retain, test = features(2000, 0.70, seed=1), features(100, 0.68, seed=2)
    assert 0.2 < mia_nonmember_rate(features(400, 0.69, seed=3), retain, test) < 0.8


def test_average_gap_is_in_percentage_points():
    a = Forgetting(ua=0.1, ra=0.9, ta=0.8, mia_nonmember_rate=0.2)
    b = Forgetting(ua=0.2, ra=0.8, ta=0.8, mia_nonmember_rate=0.4)
    assert average_gap(a, a) == 0
    assert average_gap(a, b) == average_gap(b, a) == pytest.approx((10 + 10 + 0 + 20) / 4)


def test_equal_predictions_do_not_diverge():
    logits = torch.randn(30, 5)
    assert divergences(logits, logits + 3) == pytest.approx((0, 0), abs=1e-12)


def test_divergences_of_known_distributions():
    p, q = torch.tensor([[0.75, 0.25]]), torch.tensor([[0.5, 0.5]])
    js, kl = divergences(p.log(), q.log())
    assert kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    m = (p + q) / 2
    assert js == pytest.approx(float(((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2), rel=1e-5)


def test_js_is_symmetric_and_bounded_where_kl_is_not():
    certain, opposite = torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]])
    js, kl = divergences(certain, opposite)
    assert js == pytest.approx(math.log(2))
    assert kl == pytest.approx(500)
    a, b = torch.randn(20, 4), torch.randn(20, 4)
    assert divergences(a, b)[0] == pytest.approx(divergences(b, a)[0])
    assert divergences(a, b)[1] != pytest.approx(divergences(b, a)[1])


def test_empty_or_mismatched_sets_are_refused():
    some = features(10, 0.9)
    with pytest.raises(UserError, match="the retain set is empty"):
        forgetting(some, some.select(slice(0, 0)), some)
    with pytest.raises(UserError, match=r"got \(3, 2\) and \(4, 2\)"):
        divergences(torch.zeros(3, 2), torch.zeros(4, 2))
