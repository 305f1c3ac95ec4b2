import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import UserError
from holdfast.generative import NoiseSchedule
from holdfast.generative.noise_schedule import times

COURSES = ("linear", "cosine", "sigmoid", "quadratic")
courses = pytest.mark.parametrize("course", COURSES)


@courses
@pytest.mark.parametrize("steps", [7, 50, 1000])
def test_the_signal_falls_from_one_to_nearly_nothing(course, steps):
    abar = NoiseSchedule(course, steps).abar
    assert abar.dtype == torch.float64
    assert len(abar) == steps + 1
    assert abar[0] == 1
    assert (abar.diff() < 0).all()
    assert 0 < abar[-1] < 0.01
    assert float(1 - abar[1]) < (0.02 if steps >= 50 else 0.2)


def test_linear_is_ddpm_s():
    schedule = NoiseSchedule("linear", 1000)
    assert schedule.beta(1) == pytest.approx(1e-4)
    assert schedule.beta(1000) == pytest.approx(0.02)
    assert schedule.beta(500) == pytest.approx(1e-4 + 499 / 999 * (0.02 - 1e-4))
    assert float(schedule.abar[-1]) == pytest.approx(4.036e-5, rel=1e-3)


def test_quadratic_is_linear_in_the_roots_of_beta():
    schedule = NoiseSchedule("quadratic", 1000)
    roots = torch.tensor([math.sqrt(schedule.beta(t)) for t in range(1, 1001)], dtype=torch.float64)
    torch.testing.assert_close(roots.diff(), torch.full((999,), float(roots.diff().mean()), dtype=torch.float64))


def test_cosine_is_the_squared_cosine_where_it_is_not_clipped():
    abar = NoiseSchedule("cosine", 1000).abar
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    for t in (1, 250, 500, 999):
        assert float(abar[t]) == pytest.approx(f[t] / f[0], rel=1e-9)
    assert NoiseSchedule("cosine", 1000).beta(1000) == pytest.approx(0.999)


def test_sigmoid_has_half_of_the_power_in_the_middle():
    abar = NoiseSchedule("sigmoid", 1000).abar
    assert float(abar[500]) == pytest.approx(0.5)
    torch.testing.assert_close(abar[:999] + abar[2:].flip(0), torch.ones(999, dtype=torch.float64), atol=3e-3, rtol=0)


@courses
def test_rescaled_nothing_is_left_at_the_end_and_the_beginning_is_as_before(course):
    plain, rescaled = NoiseSchedule(course), NoiseSchedule(course, zero_terminal=True)
    assert rescaled.abar[-1] == 0
    assert rescaled.abar[0] == 1
    assert float(rescaled.abar[1]) == pytest.approx(float(plain.abar[1]), rel=1e-12)
    assert (rescaled.abar.diff() < 0).all()
    # An affine map of the roots: their differences keep their proportions.
    roots = [s.abar[1:].sqrt().diff() for s in (plain, rescaled)]
    torch.testing.assert_close(roots[1] / roots[1].sum(), roots[0] / roots[0].sum())


@given(st.sampled_from(COURSES), st.integers(1, 999), st.integers(0, 1000))
def test_image_noise_and_velocity_give_each_other(course, t, seed):
    schedule = NoiseSchedule(course)
    rng = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 3, 1, 4, 4, generator=rng, dtype=torch.float64)
    at = torch.tensor([t, max(1, t // 2), 1])
    x_t = schedule.diffuse(x0, at, noise)
    for predicts in ("eps", "x0", "v"):
        found = schedule.estimate(schedule.target(x0, at, noise, predicts), x_t, at, predicts)
        torch.testing.assert_close(found.x0, x0, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found.noise, noise, atol=1e-6, rtol=1e-6)
    velocity = schedule.target(x0, at, noise, "v")
    total = x_t.square() + velocity.square()
    torch.testing.assert_close(total, x0.square() + noise.square())  # a rotation


def test_velocity_survives_the_end_of_a_rescaled_schedule():
    schedule = NoiseSchedule(zero_terminal=True)
    x0, noise = torch.randn(2, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    at = torch.tensor([1000, 1000])
    found = schedule.estimate(schedule.target(x0, at, noise, "v"), schedule.diffuse(x0, at, noise), at, "v")
    torch.testing.assert_close(found.x0, x0)
    torch.testing.assert_close(found.noise, noise)


def test_times_of_another_library_become_ours():
    ours = NoiseSchedule("cosine", 30)
    again = NoiseSchedule.of(ours.abar[1:].float())
    torch.testing.assert_close(again.abar, ours.abar, atol=1e-6, rtol=1e-6)
    assert again.steps == 30
    with pytest.raises(UserError, match="must fall"):
        NoiseSchedule.of(torch.tensor([0.5, 0.6, 0.2]))


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(["uniform", "quadratic"]))
def test_times_fall_strictly_from_the_last_to_none(total, count, spacing):
    if count > total:
        with pytest.raises(UserError, match=f"1 to {total} steps"):
            times(total, count, spacing)
        return
    visited = times(total, count, spacing)
    assert visited[0] == total
    assert visited[-1] == 0
    assert len(visited) == count + 1
    assert all(a > b for a, b in itertools.pairwise(visited))


def test_quadratic_times_lie_near_the_image():
    assert times(1000, 10, "quadratic") == [1000, 810, 640, 490, 360, 250, 160, 90, 40, 10, 0]
    assert times(1000, 4) == [1000, 750, 500, 250, 0]


def test_mistakes_are_said():
    with pytest.raises(UserError, match=r"noise schedule 'cosin' is unknown. Did you mean 'cosine'"):
        NoiseSchedule("cosin")
    with pytest.raises(UserError, match="steps must be at least 2"):
        NoiseSchedule(steps=1)
