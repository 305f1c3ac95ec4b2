import numpy as np
import pytest
import torch
from sklearn import metrics

from holdfast.errors import UserError
from holdfast.ood import separation
from holdfast.ood.evaluation import _resampled


def rng():
    return np.random.default_rng(0)


def sets(n=400, m=150, shift=1.0, digits=1):
    """Scores with ties."""
    draw = np.random.default_rng(5)
    return draw.normal(size=n).round(digits), draw.normal(shift, size=m).round(digits)


def test_values_agree_with_scikit_learn():
    inside, outside = sets()
    result = separation(inside, outside, rng=rng(), resamples=10)
    truth, scores = np.repeat([0, 1], [400, 150]), np.concatenate([inside, outside])
    assert result.auroc == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert result.aupr_out == pytest.approx(metrics.average_precision_score(truth, scores))
    assert result.aupr_in == pytest.approx(metrics.average_precision_score(1 - truth, -scores))
    fpr, tpr, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    assert result.fpr95_ood == pytest.approx(fpr[np.argmax(tpr >= 0.95)])
    fpr, tpr, _ = metrics.roc_curve(1 - truth, -scores, drop_intermediate=False)
    assert result.fpr95_id == pytest.approx(fpr[np.argmax(tpr >= 0.95)])
    assert (result.n_in, result.n_out) == (400, 150)


def test_the_two_readings_of_fpr95_differ_and_are_told_apart():
    inside = np.arange(100.0)
    outside = np.concatenate([np.full(50, 50.5), np.full(50, 1000.0)])
    result = separation(inside, outside, rng=rng(), resamples=10)
    # Accepting up to 94 lets half of the OOD images in; flagging from 50.5 on flags 49 ID images.
    assert result.fpr95_id == 0.5
    assert result.fpr95_ood == 0.49


def test_swapping_the_sets_mirrors_every_metric():
    inside, outside = sets()
    a = separation(inside, outside, rng=rng(), resamples=10)
    b = separation(-outside, -inside, rng=rng(), resamples=10)
    assert (a.auroc, a.aupr_in, a.fpr95_id) == pytest.approx((b.auroc, b.aupr_out, b.fpr95_ood))


def test_perfect_separation_is_perfect():
    result = separation([0, 1, 2], [3, 4], rng=rng(), resamples=50)
    assert (result.auroc, result.aupr_in, result.aupr_out, result.fpr95_id, result.fpr95_ood) == (1, 1, 1, 0, 0)


def test_fast_resampling_agrees_with_recomputing_each_resample():
    inside, outside = sets(60, 40)
    fast = _resampled(inside, outside, rng(), 200)
    slow = np.empty((200, 4))
    draw = rng()
    for row in slow:
        i, o = inside[draw.integers(0, 60, 60)], outside[draw.integers(0, 40, 40)]
        result = separation(i, o, rng=np.random.default_rng(1), resamples=1)
        row[:] = result.aupr_in, result.aupr_out, result.fpr95_id, result.fpr95_ood
    low, high = np.quantile(slow, [0.025, 0.975], axis=0)
    for place, name in enumerate(("aupr_in", "aupr_out", "fpr95_id", "fpr95_ood")):
        assert fast[name] == pytest.approx((low[place], high[place]))


def test_intervals_enclose_the_value_and_narrow_with_more_images():
    widths = []
    for n in (200, 3200):
        result = separation(*sets(n, n, digits=6), rng=rng(), resamples=200)
        for name, (low, high) in result.intervals.items():
            assert 0 <= low <= getattr(result, name) <= high <= 1
        widths.append({name: high - low for name, (low, high) in result.intervals.items()})
    for name in widths[0]:
        assert widths[1][name] < widths[0][name] / 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(UserError, match="1 of 3 out-of-distribution scores are not finite"):
        separation([0.0, 1.0], [0.0, bad, 1.0], rng=rng())


def test_an_empty_set_is_refused():
    with pytest.raises(UserError, match="there are no in-distribution scores"):
        separation(torch.empty(0), [1.0], rng=rng())
