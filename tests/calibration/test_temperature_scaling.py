import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from holdfast.calibration import TemperatureScaling
from holdfast.errors import UserError


def sample(n=4000, k=10, scale=2.0, seed=0):
    """Logits that are calibrated by construction: labels are drawn from their softmax."""
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, k, generator=rng)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=rng).squeeze(1)


def nll(logits, y):
    return float(torch.nn.functional.cross_entropy(logits.double(), y))


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0, 40.0])
def test_the_factor_that_spoilt_calibrated_logits_is_found(scale):
    logits, y = sample()
    assert TemperatureScaling().fit(scale * logits, y).value == pytest.approx(scale, rel=0.05)


def test_no_temperature_is_likelier():
    logits, y = sample(n=300)
    logits = 3 * logits.double()
    best = minimize_scalar(lambda log_t: nll(logits / math.exp(log_t), y), bounds=(-4, 4), method="bounded")
    found = TemperatureScaling().fit(logits, y)
    assert found.value == pytest.approx(math.exp(best.x), rel=1e-3)
    assert nll(found(logits), y) <= best.fun + 1e-12
    assert nll(found(logits), y) < nll(logits, y)


def test_the_temperature_scales_with_the_logits():
    logits, y = sample(n=500)
    one, ten = (TemperatureScaling().fit(f * logits.double(), y).value for f in (1, 10))
    assert ten == pytest.approx(10 * one, rel=1e-9)


def test_huge_logits_and_offsets_do_not_matter():
    logits, y = sample(n=500)
    logits = logits.double()
    plain = TemperatureScaling().fit(logits, y).value
    assert TemperatureScaling().fit(logits + 1e6, y).value == pytest.approx(plain, rel=1e-6)
    assert TemperatureScaling(max_temperature=1e6).fit(1e4 * logits, y).value == pytest.approx(1e4 * plain, rel=1e-9)


def test_predictions_never_change_even_where_logits_differ_by_one_bit():
    top = torch.tensor(1.99)
    logits = torch.stack([top, torch.nextafter(top, torch.tensor(3.0))]).repeat(1000, 1)
    logits = logits * torch.linspace(1, 2, 1000)[:, None]
    logits = logits[logits[:, 1] > logits[:, 0]]
    for value in (1.9, 1.37, 0.77):
        scaled = TemperatureScaling().fit(*sample(n=200)).__class__(value)(logits)
        assert (scaled.argmax(1) == 1).all()


def test_all_right_predictions_stop_at_the_lower_bound():
    logits, _ = sample(n=100)
    found = TemperatureScaling(min_temperature=0.02).fit(logits, logits.argmax(1))
    assert (found.value, found.at_bound) == (0.02, True)


def test_all_wrong_predictions_stop_at_the_upper_bound():
    logits, _ = sample(n=100)
    found = TemperatureScaling(max_temperature=30).fit(logits, logits.argmin(1))
    assert (found.value, found.at_bound) == (30, True)


def test_a_found_temperature_is_not_at_a_bound():
    assert not TemperatureScaling().fit(*sample(n=100)).at_bound


def test_equal_logits_leave_nothing_to_learn():
    assert TemperatureScaling().fit(torch.full((5, 3), 7.0), torch.tensor([0, 1, 2, 0, 1])).value == 1


def test_one_sample_suffices():
    assert TemperatureScaling().fit(torch.tensor([[2.0, 1.0]]), torch.tensor([1])).value == 100


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "no held-out samples"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), r"got \(2, 3\) and \(3,\)"),
        (torch.tensor([[0.0, math.nan]]), torch.zeros(1, dtype=torch.int64), "NaN or infinite"),
        (torch.zeros(1, 3), torch.tensor([3]), r"labels must lie in 0..2, got 3..3"),
    ],
)
def test_malformed_input_is_refused(logits, y, message):
    with pytest.raises(UserError, match=message):
        TemperatureScaling().fit(logits, y)


def test_bounds_must_be_in_order():
    with pytest.raises(UserError, match="min_temperature must be below max_temperature, got 5 and 2"):
        TemperatureScaling(min_temperature=5, max_temperature=2)
