import math

import pytest
import torch

from holdfast.calibration import ConformalSets, conformal, coverage
from holdfast.errors import UserError


def sample(n, seed, k=6):
    """Logits of a poor model: overconfident, and wrong about one class."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(k, (n,), generator=rng)
    logits = torch.randn(n, k, generator=rng)
    logits[torch.arange(n), y] += 1.5 - 1.5 * (y == 0)
    return 3 * logits, y


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_over_random_splits_the_coverage_is_what_is_promised_and_no_more(alpha):
    n, splits = 60, 400
    rates = []
    logits, y = sample(20_000, seed=0)
    rng = torch.Generator().manual_seed(1)
    for _ in range(splits):
        order = torch.randperm(len(y), generator=rng)
        calibration, test = order[:n], order[n : n + 1000]
        rates.append(coverage(conformal(logits[calibration], y[calibration], alpha)(logits[test]), y[test]).rate)
    mean, error = sum(rates) / splits, 4 * (alpha * (1 - alpha) / n / splits) ** 0.5
    # The finite-sample bounds: an uncorrected quantile would miss the lower one by 1 / (n + 1).
    assert 1 - alpha - error <= mean <= 1 - alpha + 1 / (n + 1) + error


@pytest.mark.parametrize(
    ("n", "alpha", "rank"), [(9, 0.1, 9), (19, 0.05, 19), (99, 0.1, 90), (10, 0.3, 8), (2, 0.5, 2)]
)
def test_the_threshold_is_the_corrected_quantile(n, alpha, rank):
    logits = torch.zeros(n, 2, dtype=torch.float64)
    logits[:, 0] = torch.linspace(-3, 3, n).flip(0)
    surprises = -logits.log_softmax(1)[:, 0]
    found = conformal(logits, torch.zeros(n, dtype=torch.int64), alpha)
    assert rank == math.ceil(round((n + 1) * (1 - alpha), 9))
    assert found.threshold == surprises.sort().values[rank - 1]


def test_too_few_calibration_images_let_every_class_in():
    logits, y = sample(8, seed=0)
    sets = conformal(logits, y, 0.1)
    assert sets.threshold == math.inf
    assert sets(logits).all()


def test_sets_are_the_likely_classes_and_nest_with_alpha():
    logits, y = sample(500, seed=0)
    test, _ = sample(200, seed=1)
    wide, narrow = conformal(logits, y, 0.05)(test), conformal(logits, y, 0.4)(test)
    assert (wide | ~narrow).all()
    p = test.softmax(1)
    worst_in = torch.where(wide, p, torch.inf).amin(1)
    best_out = torch.where(wide, 0, p).amax(1)
    assert worst_in[wide.any(1)].min() >= best_out.max() * (1 - 1e-6)


def test_coverage_is_counted_overall_and_by_class():
    sets = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    found = coverage(sets, torch.tensor([0, 0, 1, 2]))
    assert found.covered.tolist() == [True, False, False, True]
    assert found.sizes.tolist() == [2, 1, 0, 2]
    assert found.by_class[:3].tolist() == [0.5, 0.0, 1.0]
    assert math.isnan(found.by_class[3])
    assert found.counts.tolist() == [2, 1, 1, 0]
    assert (found.rate, found.mean_size) == (0.5, 1.25)


def test_near_certain_classes_keep_their_order():
    sets = ConformalSets(alpha=0.1, threshold=1e-17, n=10)
    assert sets(torch.tensor([[45.0, 0.0], [38.0, 0.0], [30.0, 0.0]])).tolist() == [[True, False]] * 2 + [
        [False, False]
    ]


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 2])
def test_alpha_must_be_a_rate(alpha):
    with pytest.raises(UserError, match=r"alpha must be in \(0, 1\)"):
        conformal(*sample(10, seed=0), alpha)


def test_malformed_input_is_refused():
    logits, y = sample(10, seed=0)
    with pytest.raises(UserError, match="got 10 and 0"):
        conformal(logits, y[:0])
    with pytest.raises(UserError, match="NaN"):
        conformal(logits * math.nan, y)
