import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import UserError, stats

RNG = np.random.default_rng(0)
COUNTS = [(0, 1), (1, 1), (0, 30), (30, 30), (3, 17), (95, 100), (412, 1000), (9123, 10000)]


@pytest.mark.parametrize(("k", "n"), COUNTS)
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_rate_intervals_agree_with_scipy(k, n, level):
    test = scipy.stats.binomtest(k, n)
    for ours, method in ((stats.wilson, "wilson"), (stats.clopper_pearson, "exact")):
        theirs = test.proportion_ci(level, method)
        assert ours(k, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_no_failure_in_n_trials_bounds_the_rate_near_three_over_n():
    assert stats.clopper_pearson(0, 1000, 0.9)[1] == pytest.approx(3 / 1000, rel=0.01)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(UserError, match="k="):
        stats.wilson(k, n)


def test_newcombe_reproduces_the_published_examples():
    # Newcombe (1998a), table II, examples (a) and (e), method 10.
    assert stats.newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert stats.newcombe(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)


def test_the_paired_interval_reproduces_the_published_example():
    # Newcombe (1998b), airway hyper-reactivity: 1 both, 1 only before, 7 only after, 12 neither.
    a, b = np.repeat([1, 1, 0, 0], [1, 1, 7, 12]), np.repeat([1, 0, 1, 0], [1, 1, 7, 12])
    assert stats.newcombe_paired(a, b) == pytest.approx((-0.507, -0.026), abs=1e-3)
    assert stats.newcombe_paired(b, a) == pytest.approx((0.026, 0.507), abs=1e-3)


def test_pairing_narrows_the_interval_when_models_agree_and_covers_as_promised():
    rng = np.random.default_rng(1)
    hits = widths = 0
    for _ in range(500):
        hard = rng.random(200)
        a, b = hard + rng.normal(0, 0.1, 200) < 0.9, hard + rng.normal(0, 0.1, 200) < 0.85
        low, high = stats.newcombe_paired(a, b)
        independent = stats.newcombe(a.sum(), 200, b.sum(), 200)
        widths += (high - low) < (independent[1] - independent[0])
        hits += low <= 0.05 <= high
    assert widths > 480
    assert 0.92 <= hits / 500 <= 0.99


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_sign_test_of_the_disagreements(pairs):
    a, b = np.array(pairs).T
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    expected = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert stats.mcnemar(a, b) == pytest.approx(expected, abs=1e-12)
    assert stats.mcnemar(a, b) == pytest.approx(stats.mcnemar(b, a))


scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=25)


@given(scores, scores)
def test_rankings_agree_with_scikit_learn_ties_included(negatives, positives):
    truth = [0] * len(negatives) + [1] * len(positives)
    both = negatives + positives
    assert stats.auroc(negatives, positives) == pytest.approx(sklearn.metrics.roc_auc_score(truth, both))
    assert stats.average_precision(negatives, positives) == pytest.approx(
        sklearn.metrics.average_precision_score(truth, both)
    )


@given(scores, scores, st.sampled_from([0.01, 0.1, 0.5, 0.8, 0.95, 1.0]))
def test_operating_points_are_the_best_that_any_threshold_reaches(negatives, positives, rate):
    negatives, positives = np.array(negatives), np.array(positives)
    thresholds = [*np.unique([*negatives, *positives]), np.inf]
    points = [((negatives >= t).mean(), (positives >= t).mean()) for t in thresholds]
    assert stats.fpr_at_tpr(negatives, positives, rate) == min(f for f, t in points if t >= rate - 1e-12)
    assert stats.tpr_at_fpr(negatives, positives, rate) == max(t for f, t in points if f <= rate + 1e-12)


def test_infinite_scores_rank_and_nan_scores_are_refused():
    assert stats.auroc([0.0, -np.inf], [np.inf, 1.0]) == 1.0
    with pytest.raises(UserError, match="1 of 2 values are NaN"):
        stats.auroc([0.0, np.nan], [1.0])
    with pytest.raises(UserError, match="empty"):
        stats.auroc([], [1.0])


def brute_force_delong(negatives, positives):
    psi = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    area = psi.mean()
    variance = psi.mean(1).var(ddof=1) / len(positives) + psi.mean(0).var(ddof=1) / len(negatives)
    half = 1.959963984540054 * math.sqrt(variance) / (area * (1 - area))
    return tuple(scipy.special.expit(scipy.special.logit(area) + s * half) for s in (-1, 1))


def test_delong_by_ranks_equals_the_quadratic_definition():
    for shift in (-1.0, 0.0, 0.7, 2.0):
        negatives = RNG.normal(size=60).round(1)
        positives = (RNG.normal(size=45) + shift).round(1)
        assert stats.auroc_interval(negatives, positives) == pytest.approx(brute_force_delong(negatives, positives))


def test_the_auroc_interval_covers_the_truth_as_often_as_promised():
    truth = scipy.stats.norm.cdf(1.5 / math.sqrt(2))
    hits = 0
    for _ in range(600):
        low, high = stats.auroc_interval(RNG.normal(size=80), RNG.normal(1.5, size=60))
        hits += low <= truth <= high
    assert 0.92 <= hits / 600 <= 0.98


def test_perfect_separation_is_not_certainty():
    low, high = stats.auroc_interval(np.zeros(50), np.ones(40))
    assert high == 1.0
    assert low == pytest.approx(stats.clopper_pearson(40, 40)[0])
    assert (
        stats.auroc_interval(np.zeros(50), np.zeros(40))[0] < 0.5 < stats.auroc_interval(np.zeros(50), np.zeros(40))[1]
    )


def test_the_bootstrap_of_a_mean_agrees_with_the_normal_interval():
    values = RNG.normal(3, 2, size=400)
    half = 1.96 * values.std() / 20
    expected = (values.mean() - half, values.mean() + half)
    assert stats.mean_interval(values, rng=np.random.default_rng(0)) == pytest.approx(expected, abs=0.05)
    general = stats.bootstrap(np.mean, values, rng=np.random.default_rng(0))
    assert general == stats.mean_interval(values, rng=np.random.default_rng(0))


def test_students_interval_of_a_mean_covers_it_as_often_as_it_says():
    draws = RNG.normal(3, 2, size=(4000, 4))
    intervals = np.array([stats.student_interval(values, 0.9) for values in draws])
    covered = (intervals[:, 0] <= 3) & (intervals[:, 1] >= 3)
    assert covered.mean() == pytest.approx(0.9, abs=0.015)
    # Four values: 3.182 standard errors to each side.
    assert stats.student_interval([1, 2, 3, 4]) == pytest.approx(
        (2.5 - 3.18245 * 0.6455, 2.5 + 3.18245 * 0.6455), rel=1e-4
    )
    with pytest.raises(UserError, match="two or more"):
        stats.student_interval([1.0])


def test_the_bootstrap_resamples_each_sample_by_itself_and_keeps_rows_together():
    rows = np.stack([np.arange(20.0), np.arange(20.0)], 1)
    assert stats.bootstrap(lambda r: float(np.abs(r[:, 0] - r[:, 1]).max()), rows, rng=RNG, resamples=50) == (0, 0)
    low, high = stats.bootstrap(lambda a, b: a.mean() - b.mean(), np.ones(5), np.zeros(9), rng=RNG, resamples=20)
    assert (low, high) == (1, 1)


def test_calibration_error_of_a_known_case():
    confidence = np.array([0.9] * 10 + [0.6] * 10)
    correct = np.array([True] * 8 + [False] * 2 + [True] * 6 + [False] * 4)
    for equal_mass in (True, False):
        assert stats.ece(confidence, correct, 2, equal_mass) == pytest.approx(0.05)
    assert stats.ece(confidence, correct, 1) == pytest.approx(0.05)
    halves = stats.calibration_bins(confidence, correct, 2)
    assert halves.count.tolist() == [10, 10]
    assert halves.accuracy.tolist() == [0.6, 0.8]


def test_equal_mass_bins_are_equal_and_do_not_depend_on_the_order_of_samples():
    confidence = RNG.random(150)
    correct = RNG.random(150) < confidence
    assert stats.calibration_bins(confidence, correct, 15).count.tolist() == [10] * 15
    tied = confidence.round(1)
    order = RNG.permutation(150)
    assert stats.ece(tied, correct) == pytest.approx(stats.ece(tied[order], correct[order]))


def test_equal_width_bins_put_a_confidence_on_an_edge_into_the_lower_bin_like_guo_et_al():
    bins = stats.calibration_bins([0.5, 0.5000001, 1.0, 0.0], [1, 1, 1, 1], 2, equal_mass=False)
    assert bins.count.tolist() == [2, 2]


def test_adaptive_ece_of_two_classes_is_the_mean_of_both_one_class_errors():
    p = RNG.random(60)
    y = (RNG.random(60) < 0.5).astype(int)
    probabilities = np.stack([1 - p, p], 1)
    assert stats.adaptive_ece(probabilities, y, 5) == pytest.approx(
        (stats.ece(p, y == 1, 5) + stats.ece(1 - p, y == 0, 5)) / 2
    )


def test_proper_scores_agree_with_their_definitions_and_survive_extreme_logits():
    logits = RNG.normal(size=(30, 4)) * 5
    y = RNG.integers(0, 4, 30)
    p = scipy.special.softmax(logits, 1)
    assert stats.nll(logits, y).mean() == pytest.approx(sklearn.metrics.log_loss(y, p, labels=range(4)))
    assert stats.brier(p, y) == pytest.approx(((p - np.eye(4)[y]) ** 2).sum(1))
    assert stats.nll([[2000.0, 0.0]], [1]) == pytest.approx([2000.0])
    assert stats.brier([[1.0, 0.0], [0.0, 1.0]], [0, 0]).tolist() == [0, 2]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40))
def test_risk_coverage_ends_at_the_error_rate_and_ties_do_not_depend_on_order(pairs):
    confidence, correct = np.array([c / 4 for c, _ in pairs]), np.array([b for _, b in pairs])
    coverage, risk = stats.risk_coverage(confidence, correct)
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(1 - correct.mean())
    assert stats.risk_coverage(confidence[::-1], correct[::-1])[1] == pytest.approx(risk)


def test_a_perfect_ranking_has_the_smallest_area_under_risk_coverage():
    correct = np.array([True] * 8 + [False] * 2)
    good, bad = np.arange(10, 0, -1.0), np.arange(10.0)
    assert stats.aurc(good, correct) == pytest.approx((1 / 9 + 2 / 10) / 10)
    assert stats.aurc(np.ones(10), correct) == pytest.approx(0.2)
    assert stats.aurc(good, correct) < 0.2 < stats.aurc(bad, correct)
