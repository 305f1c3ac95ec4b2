import numpy as np
import pytest

from holdfast import stats
from holdfast.calibration import ece_floor, selective_risk
from holdfast.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("equal_mass", [True, False])
def test_a_calibrated_model_lies_at_the_floor(equal_mass):
    draw = rng(1)
    confidence = draw.uniform(0.5, 1, 1000)
    floor = ece_floor(confidence, 15, equal_mass=equal_mass, rng=rng(), draws=400)
    errors = [stats.ece(confidence, draw.random(1000) < confidence, 15, equal_mass) for _ in range(400)]
    assert floor.mean == pytest.approx(np.mean(errors), rel=0.05)
    assert 0.02 < np.mean(np.array(errors) > floor.high) < 0.09


def test_the_floor_follows_the_sampling_error_of_a_bin():
    confidence = np.full(2000, 0.8)
    # One bin: E|accuracy - confidence| of a binomial, sqrt(2 / pi) standard errors.
    expected = np.sqrt(2 / np.pi) * np.sqrt(0.8 * 0.2 / 2000)
    assert ece_floor(confidence, 15, rng=rng(), draws=2000).mean == pytest.approx(expected, rel=0.05)


def test_more_images_lower_the_floor_and_certainty_removes_it():
    confidence = rng().uniform(0.5, 1, 4000)
    assert ece_floor(confidence, rng=rng()).mean < 0.6 * ece_floor(confidence[:1000], rng=rng()).mean
    assert ece_floor(np.ones(100), rng=rng()) == (0, 0)


def test_selective_risk_counts_the_errors_among_the_confident():
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    correct = np.array([True, False, True, True, False])
    assert [selective_risk(confidence, correct, c) for c in (0.2, 0.4, 0.6, 0.8, 1)] == pytest.approx(
        [0, 1 / 2, 1 / 3, 1 / 4, 2 / 5]
    )
    assert selective_risk(confidence, correct, 0.01) == 0


def test_confidence_without_information_gives_the_overall_risk():
    correct = rng().random(500) < 0.7
    assert selective_risk(np.zeros(500), correct, 0.3) == pytest.approx(1 - correct.mean())


def test_coverage_must_be_a_rate():
    with pytest.raises(UserError, match="coverage must be in"):
        selective_risk([0.5], [True], 0)
