import math

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from holdfast import stats
from holdfast.data import load_data
from holdfast.errors import UserError
from holdfast.models import extract, load_model
from holdfast.ood import conformal_alarm, fit_on_features, smallest_alarm_rate
from holdfast.run import Run


def normal(n, seed):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_p_value_is_the_share_of_calibration_images_that_score_as_high_itself_included():
    alarm = conformal_alarm(torch.tensor([3.0, 1.0, 2.0, 2.0]), alpha=0.5)
    found = alarm.p_values(torch.tensor([0.0, 1.0, 2.0, 2.5, 3.0, 4.0]))
    assert found.tolist() == [5 / 5, 5 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5]


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 1 / 3, 0.9])
@pytest.mark.parametrize("n", [99, 100, 128])
def test_an_alarm_is_a_p_value_of_at_most_alpha(alpha, n):
    scores = torch.cat([normal(500, seed=1), normal(n, seed=2)])  # ties with the calibration set too
    alarm = conformal_alarm(normal(n, seed=2), alpha)
    assert torch.equal(alarm(scores), alarm.p_values(scores) <= alpha + 1e-12)
    assert alarm(scores).any()
    assert not alarm(scores).all()


@pytest.fixture(scope="module")
def known():
    """Scores of images that the zoo's model has not learnt from, by a detector that has not learnt from them either."""
    data, model = load_data("digits"), load_model("zoo:digits-convnet")
    (detector,) = fit_on_features(["knn(k=10)"], extract(model, data.train, run=Run()), None).values()
    return torch.cat([detector.score(extract(model, images, run=Run())) for images in (data.val, data.test)])


def false_alarm_rates(known, alpha, delta=None, splits=200):
    """Of random halves, the one calibrating and the other raising false alarms."""
    rates = []
    for seed in range(splits):
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
        calibration, fresh = known[order].chunk(2)
        rates.append(float(conformal_alarm(calibration, alpha, delta=delta)(fresh).double().mean()))
    return np.array(rates)


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1, 0.2])
def test_false_alarms_keep_the_promised_rate_over_200_random_splits(known, alpha):
    rates = false_alarm_rates(known, alpha)
    # Halves of one set share images, so the mean over splits is closer to its expectation than that of fresh draws.
    error = 3 * rates.std() / math.sqrt(len(rates))
    assert rates.mean() <= alpha + error
    assert rates.mean() >= alpha - 2 / (len(known) // 2) - error, "an alarm that never rings keeps the promise too"


def test_the_stricter_alarm_keeps_the_rate_for_all_but_delta_of_the_calibration_sets():
    alpha, delta, n = 0.1, 0.2, 100
    true_rates = {}
    for level in (None, delta):
        alarms = [conformal_alarm(normal(n, seed), alpha, delta=level) for seed in range(400)]
        true_rates[level] = np.array([scipy_stats.norm.sf(alarm.threshold) for alarm in alarms])
    # 400 draws of a rate that is at most 0.2: its exact interval must reach down to it.
    broken = int((true_rates[delta] > alpha).sum())
    assert stats.clopper_pearson(broken, 400)[0] <= delta
    assert broken > 0, "no stricter than it need be"
    assert (true_rates[None] > alpha).mean() > 2 * delta, "on average is a weaker promise"
    assert true_rates[None].mean() == pytest.approx(10 / 101, abs=0.005)  # E Beta(10, 91)


@pytest.mark.parametrize("n", [30, 200, 1000])
def test_the_stricter_rank_is_the_last_whose_beta_tail_is_within_delta(n):
    for alpha, delta in ((0.1, 0.05), (0.2, 0.3), (0.5, 0.01)):
        rank = conformal_alarm(normal(n, seed=0), alpha, delta=delta).rank
        assert scipy_stats.beta.sf(alpha, rank, n + 1 - rank) <= delta
        assert scipy_stats.beta.sf(alpha, rank + 1, n - rank) > delta


@pytest.mark.parametrize("delta", [None, 0.1])
def test_too_few_images_are_said_with_the_rate_that_they_allow_and_the_number_needed(delta):
    scores = normal(20, seed=0)
    with pytest.raises(UserError, match="20 calibration images allow no alarm rate below") as caught:
        conformal_alarm(scores, 0.01, delta=delta)
    least = smallest_alarm_rate(20, delta)
    assert f"{least:.4g}" in str(caught.value)
    alarm = conformal_alarm(scores, least + 1e-12, delta=delta)
    assert alarm.threshold == float(scores.max())
    needed = int(str(caught.value).rstrip(".").split()[-1])
    conformal_alarm(normal(needed, seed=0), 0.01, delta=delta)
    with pytest.raises(UserError, match="allow no alarm rate"):
        conformal_alarm(normal(needed - 1, seed=0), 0.01, delta=delta)


def test_equal_scores_make_the_alarm_rarer_and_never_more_frequent():
    rounded = normal(4000, seed=3).round()
    rates = false_alarm_rates(rounded, 0.1, splits=50)
    assert rates.mean() < 0.1
    constant = conformal_alarm(torch.ones(50), 0.1)
    assert not constant(torch.ones(5)).any()
    assert constant(torch.tensor([1.0 + 1e-12], dtype=torch.float64)).all()


def test_the_promise_is_said_in_words():
    assert "on average at most 5 %" in conformal_alarm(normal(100, seed=0)).promise
    assert "at most 10 % raise a false alarm (95 % certain)" in conformal_alarm(normal(100, 0), 0.1, delta=0.05).promise


@pytest.mark.parametrize(
    ("scores", "options", "words"),
    [
        (torch.empty(0), {}, "there are no calibration images"),
        (torch.tensor([1.0, math.nan]), {}, "1 of 2 scores are NaN"),
        (torch.ones(50), {"alpha": 0.0}, "alpha must be in"),
        (torch.ones(50), {"alpha": 1.0}, "alpha must be in"),
        (torch.ones(50), {"alpha": math.nan}, "alpha must be in"),
        (torch.ones(50), {"delta": 1.5}, "delta must be in"),
    ],
)
def test_what_has_no_meaning_is_refused(scores, options, words):
    with pytest.raises(UserError, match=words):
        conformal_alarm(scores, **options)


def test_a_score_without_meaning_raises_an_error_rather_than_no_alarm():
    alarm = conformal_alarm(normal(50, seed=0))
    for ask in (alarm, alarm.p_values):
        with pytest.raises(UserError, match="1 of 1 scores are NaN"):
            ask(torch.tensor([math.nan]))
