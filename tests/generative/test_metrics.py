import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import nn

from holdfast.errors import UserError
from holdfast.generative import FeatureNetwork, compare, fid, kid, precision_recall
from holdfast.models import extract, load_model
from holdfast.run import Run


def some(n, d=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=rng, dtype=torch.float64)
    return torch.randn(n, d, generator=rng, dtype=torch.float64) @ mix + torch.rand(d, generator=rng)


def by_scipy(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real))


@given(st.integers(0, 500), st.integers(20, 60), st.integers(2, 10))
def test_fid_is_that_of_the_matrix_root(seed, n, d):
    a, b = some(n, d, seed), some(n + 5, d, seed + 1000)
    assert fid(a, b) == pytest.approx(by_scipy(a, b), rel=1e-6, abs=1e-8)
    assert fid(a, b) == pytest.approx(fid(b, a), rel=1e-8)


def test_fid_of_normal_sets_is_the_closed_form():
    """Of N(m, s^2) and N(n, t^2) in independent directions: the sum of (m - n)^2 + (s - t)^2."""
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 3, generator=rng) * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([0.0, 1.0, -1.0])
    b = torch.randn(200_000, 3, generator=rng) * torch.tensor([2.0, 2.0, 1.5]) + torch.tensor([3.0, 1.0, 0.0])
    assert fid(a, b) == pytest.approx(9 + 1 + 1 + 1, rel=0.02)


def test_fid_of_a_set_with_itself_is_nothing_even_where_features_are_dead():
    a = some(40, 6)
    dead = torch.cat([a, torch.zeros(40, 5, dtype=a.dtype), a[:, :1]], 1)
    assert abs(fid(dead, dead)) < 1e-5
    moved = dead + torch.eye(12, dtype=a.dtype)[7]
    assert fid(dead, moved) == pytest.approx(1, rel=1e-5)


def test_kid_is_the_unbiased_discrepancy_written_out():
    a, b = some(12, 4), some(12, 4, seed=1)

    def k(x, y):
        return (x @ y / 4 + 1) ** 3

    n = 12
    own = [sum(k(s[i], s[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1)) for s in (a, b)]
    between = sum(k(x, y) for x in a for y in b) / n**2
    expected = float(own[0] + own[1] - 2 * between)
    assert kid(a, b, rng=torch.Generator(), subsets=2) == pytest.approx(expected, rel=1e-9)


def test_kid_of_equal_distributions_is_nothing_on_average_and_of_others_is_not():
    rng = torch.Generator().manual_seed(0)
    values = [kid(some(100, 4, s)[:, :2], some(200, 4, s)[100:, :2], rng=rng, subsets=1) for s in range(60)]
    scale = np.std(values) / np.sqrt(60)
    assert abs(np.mean(values)) < 4 * scale
    assert kid(some(100), some(100) + 2, rng=rng) > 0.1


def test_precision_asks_of_the_made_and_recall_of_the_real():
    rng = torch.Generator().manual_seed(0)
    left, right = torch.rand(60, 2, generator=rng), torch.rand(60, 2, generator=rng) + 10
    real = torch.cat([left, right])
    precision, recall = precision_recall(torch.rand(60, 2, generator=rng), real)
    assert precision > 0.9  # all that is made is real enough
    assert 0.4 < recall < 0.55  # half of what is real is not made
    precision, recall = precision_recall(torch.cat([real + 0.01, right + 10]), real)
    assert 0.6 < precision < 0.72
    assert recall > 0.9
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real + 100, real) == (0.0, 0.0)


def test_the_third_neighbour_makes_the_manifold():
    real = torch.tensor([[0.0], [1.0], [2.0], [3.5], [50.0]])
    # around 0 the ball reaches to 3.5, around 50 to 1
    assert precision_recall(torch.tensor([[-3.4], [-3.6], [1.5], [98.9], [99.1]]), real)[0] == pytest.approx(3 / 5)


def test_real_digits_are_nearer_to_each_other_than_noise_is(digits):
    network = FeatureNetwork("zoo:digits-convnet", load_model("zoo:digits-convnet"))
    run = Run()
    real, others = digits.test.x[:200], digits.test.x[200:400]
    noise = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    near, far = (compare(network, x, real, run=run) for x in (others, noise))
    assert near.values["fid"] < 0.1 * far.values["fid"]
    assert near.values["kid"] < far.values["kid"]
    assert near.values["precision"] > 0.7 > far.values["precision"]
    assert near.values["recall"] > 0.7
    assert "features of zoo:digits-convnet, 200 generated against 200 real images" in near.sentence
    assert near.to_json()["features"] == "zoo:digits-convnet"
    features = network(real, run=run)
    seen = extract(network.model, digits.test.select(slice(0, 200)), run=run).penultimate
    torch.testing.assert_close(features.float(), seen)


def test_mistakes_are_said():
    one, few = some(1), some(3)
    with pytest.raises(UserError, match="fid: it needs at least two"):
        fid(one, few)
    with pytest.raises(UserError, match="kid: it needs at least two"):
        kid(one, few, rng=torch.Generator())
    with pytest.raises(UserError, match="more than 3 images"):
        precision_recall(few, few)
    with pytest.raises(UserError, match="no features to compare"):
        FeatureNetwork("bare", nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1)))(
            torch.rand(4, 1, 8, 8), run=Run()
        )
