import numpy as np
import pytest

from holdfast import stats
from holdfast.errors import UserError
from holdfast.privacy import leakage, tpr_at


def rng(seed=0):
    return np.random.default_rng(seed)


def normal(n, shift=0.0, seed=0):
    return rng(seed).normal(shift, size=n)


def test_swapping_members_and_others_mirrors_the_auc():
    a = leakage(normal(500, 1, 1), normal(400, 0, 2), rng=rng(), resamples=10)
    b = leakage(normal(400, 0, 2), normal(500, 1, 1), rng=rng(), resamples=10)
    assert a.auc == pytest.approx(1 - b.auc)
    assert a.auc == pytest.approx(0.76, abs=0.03)
    assert (a.n_members, a.n_nonmembers) == (500, 400)


def test_balanced_accuracy_of_known_distributions():
    # Unit normals one apart: the best threshold lies halfway, and Phi(1/2) = 0.6915 are right on each side.
    results = [leakage(normal(2000, 1, 2 * s), normal(2000, 0, 2 * s + 1), rng=rng(s), resamples=1) for s in range(60)]
    assert np.mean([r.balanced_accuracy for r in results]) == pytest.approx(0.6915, abs=0.004)
    inside = [r.balanced_accuracy_interval[0] < 0.6915 < r.balanced_accuracy_interval[1] for r in results]
    assert np.mean(inside) > 0.8
    low, high = results[0].balanced_accuracy_interval
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.6915 * 0.3085 / 4000), rel=0.05)


def test_balanced_accuracy_of_pure_chance_is_one_half_even_in_small_samples():
    results = [leakage(normal(30, 0, 2 * s), normal(30, 0, 2 * s + 1), rng=rng(s), resamples=1) for s in range(300)]
    # A threshold judged on the sample that chose it would give about 0.61 here.
    assert np.mean([r.balanced_accuracy for r in results]) == pytest.approx(0.5, abs=0.015)
    inside = [r.balanced_accuracy_interval[0] <= 0.5 <= r.balanced_accuracy_interval[1] for r in results]
    assert np.mean(inside) > 0.88


def test_complete_leakage_is_complete():
    result = leakage(np.arange(100, 300), np.arange(100), rng=rng(), resamples=50)
    assert (result.auc, result.tpr[0.01]) == (1, 1)
    assert result.balanced_accuracy > 0.98


def test_a_constant_score_tells_nothing():
    result = leakage(np.zeros(200), np.zeros(200), rng=rng(), resamples=20)
    assert (result.auc, result.balanced_accuracy, result.tpr[0.01]) == (0.5, 0.5, 0)


def test_true_positive_rate_allows_only_so_many_mistakes():
    others = np.arange(1000.0)
    members = np.array([995.5, 989.5, 989.0, 500.0])
    assert tpr_at(members, others, 0.01) == 0.5  # ten may be mistaken: above 989
    assert tpr_at(members, others, 0.001) == 0
    assert tpr_at(np.append(members, 998.5), others, 0.001) == pytest.approx(0.2)


def test_rates_that_the_sample_cannot_resolve_are_refused():
    with pytest.raises(UserError, match=r"0\.001 needs at least 1000 non-members, got 999"):
        tpr_at(normal(50), normal(999), 0.001)
    result = leakage(normal(50), normal(999), rng=rng(), resamples=20)
    assert result.tpr[0.001] is None
    assert 0.001 not in result.tpr_intervals
    low, high = result.tpr_intervals[0.01]
    assert low <= result.tpr[0.01] <= high


def test_the_interval_of_a_rate_is_that_of_resampling_both_sets():
    members, others = normal(400, 1.5, 1).round(1), normal(300, 0, 2).round(1)
    (low, high) = leakage(members, others, rng=rng(), resamples=20_000).tpr_intervals[0.01]
    plain = stats.bootstrap(lambda m, o: stats.tpr_at_fpr(o, m, 0.01), members, others, rng=rng(1), resamples=4000)
    assert (low, high) == pytest.approx(plain, abs=0.015)


@pytest.mark.parametrize(
    ("members", "others", "message"),
    [([1.0], [0.0, 1.0], "two members"), ([0, np.nan], [0, 1], "1 of 2 scores of members")],
)
def test_scores_without_meaning_are_refused(members, others, message):
    with pytest.raises(UserError, match=message):
        leakage(members, others, rng=rng())
