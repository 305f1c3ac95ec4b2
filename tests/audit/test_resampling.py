import numpy as np
import pytest

from holdfast import stats
from holdfast.audit.predictions import Predictions
from holdfast.audit.resampling import draws, mean_ece, percentiles


def binary(confidence, correct):
    """Predictions of class 0 with the given confidences."""
    logits = np.stack([np.log(confidence), np.log1p(-confidence)], 1)
    return Predictions(logits, np.where(correct, 0, 1))


def test_draws_are_resamples():
    rng = np.random.default_rng(0)
    counts = np.concatenate(list(draws(50, 400, rng)))
    assert counts.shape == (400, 50)
    assert (counts.sum(1) == 50).all()
    assert counts.var() == pytest.approx(1, abs=0.1)


def test_the_value_is_the_calibration_error_itself():
    rng = np.random.default_rng(0)
    cells = [binary(rng.uniform(0.5, 0.99, 80), rng.random(80) < 0.7) for _ in range(3)]
    value, low, high = mean_ece(cells, rng=rng, resamples=50)
    assert value == pytest.approx(np.mean([stats.ece(c.confidence, c.correct) for c in cells]))
    assert low <= value <= high


def test_resampled_errors_agree_with_a_bootstrap_that_bins_once():
    rng = np.random.default_rng(0)
    seen = binary(rng.uniform(0.5, 0.99, 60).round(2), rng.random(60) < 0.6)
    value, low, high = mean_ece([seen], rng=np.random.default_rng(7), resamples=300, bins=5)
    edges = np.sort(seen.confidence)[[12, 24, 36, 48]]
    which = np.searchsorted(edges, seen.confidence, side="right")
    errors = []
    for row in np.concatenate(list(draws(60, 300, np.random.default_rng(7)))):
        sums = np.bincount(which, weights=row * (seen.correct - seen.confidence), minlength=5)
        errors.append(np.abs(sums).sum() / 60)
    bottom, top = percentiles(np.array(errors))
    assert low == pytest.approx(max(0, min(value, 2 * value - top)))
    assert high == pytest.approx(max(value, 2 * value - bottom))


def test_a_calibrated_model_on_few_images_is_not_declared_miscalibrated():
    """Its estimate is about 6 % from chance alone; the interval must reach well below."""
    rng = np.random.default_rng(3)
    declared = 0
    for _ in range(60):
        confidence = rng.uniform(0.6, 0.99, 150)
        _, low, _ = mean_ece([binary(confidence, rng.random(150) < confidence)], rng=rng, resamples=100)
        declared += low > 0.05
    assert declared <= 6


def test_a_miscalibrated_model_is():
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.9, 0.99, 500)
    _, low, high = mean_ece([binary(confidence, rng.random(500) < confidence - 0.2)], rng=rng, resamples=100)
    assert low > 0.1
    assert high > 0.2
