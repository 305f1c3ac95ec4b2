import math

import numpy as np
import pytest
import torch
from scipy import optimize

from holdfast.evasion.balls import SLACK, distance, project, steepest, uniforms_needed, within
from holdfast.run import uniform_at


def numbers(n, count, seed=0):
    return uniform_at(seed, torch.arange(n), count)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_gives_the_nearest_point_and_leaves_inner_points_alone(norm):
    centre = torch.full((50, 1, 2, 2), 0.5)
    x = centre + torch.randn(centre.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    expected = x.clone()
    offset = x - centre
    length = distance(x, centre, norm).view(-1, 1, 1, 1)
    far = (length > 0.15).expand_as(x)
    clipped = centre + (offset.clamp(-0.15, 0.15) if norm == "linf" else offset / length * 0.15)
    expected[far] = clipped[far]
    assert far.any()
    assert not far.all()
    assert torch.allclose(project(x.clone(), centre, 0.15, norm), expected, atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_points_fill_the_ball_evenly(norm):
    centre = torch.full((4000, 1, 1, 3), 0.5)
    points = within(centre, 0.25, norm, numbers(4000, uniforms_needed(norm, 3)))
    r = distance(points, centre, norm) / 0.25
    assert r.max() <= 1 + 1e-6
    # In d dimensions the radius of a uniform point to the power d is uniform on [0, 1].
    assert (r**3).mean() == pytest.approx(0.5, abs=3 * math.sqrt(1 / 12 / 4000))
    assert (points - centre).mean(0).abs().max() < 0.01
    # On average a coordinate is as large as in the ball: for l_1, 1 / (d + 1) of the radius.
    expected = {"linf": 1 / 2, "l2": 3 / 8, "l1": 1 / 4}[norm]
    assert torch.allclose((points - centre).abs().mean(0), torch.tensor(0.25 * expected), atol=0.004)


def test_random_points_do_not_depend_on_the_memory_format():
    centre = torch.rand(3, 3, 5, 4)
    drawn = numbers(3, 60)
    last = within(centre.contiguous(memory_format=torch.channels_last), 0.1, "linf", drawn.clone())
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, within(centre, 0.1, "linf", drawn))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_direction_of_steepest_ascent_has_length_one_at_any_scale(scale):
    gradient = torch.randn(4, 3, 2, 2) * scale
    direction = steepest(gradient.clone(), "l2")
    assert torch.allclose(direction.flatten(1).norm(dim=1), torch.ones(4), atol=1e-5)
    assert torch.equal(direction.sign(), gradient.sign())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_gradient_without_direction_gives_none(norm):
    gradient = torch.zeros(2, 1, 2, 2)
    gradient[1, 0, 0] = torch.tensor([math.nan, -2.0])
    direction = steepest(gradient, norm)
    assert not direction[0].any()
    assert torch.equal(direction[1, 0], torch.tensor([[0.0, -1.0], [0.0, 0.0]]))


def nearest_by_quadratic_programming(x, z, eps):
    """The point nearest to z within eps of x (l_1) and in the box, from a general solver; v = p - q, p and q >= 0."""
    d, n = z - x, len(x)

    def value(pq):
        v = pq[:n] - pq[n:] - d
        return v @ v, np.concatenate([2 * v, -2 * v])

    constraints = [
        {"type": "ineq", "fun": lambda pq: eps - pq.sum(), "jac": lambda pq: -np.ones(2 * n)},
        {"type": "ineq", "fun": lambda pq: pq[:n] - pq[n:] + x, "jac": lambda pq: np.hstack([np.eye(n), -np.eye(n)])},
        {
            "type": "ineq",
            "fun": lambda pq: 1 - x - pq[:n] + pq[n:],
            "jac": lambda pq: np.hstack([-np.eye(n), np.eye(n)]),
        },
    ]
    options = {"maxiter": 500, "ftol": 1e-15}
    start, bounds = np.zeros(2 * n), [(0, None)] * (2 * n)
    found = optimize.minimize(
        value, start, jac=True, bounds=bounds, constraints=constraints, method="SLSQP", options=options
    )
    return x + found.x[:n] - found.x[n:]


def test_the_l1_projection_is_the_nearest_point_of_ball_and_box():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(24, 1, 2, 4, generator=generator)
    x[::5] = x[::5].round()
    z = x + torch.randn(x.shape, generator=generator) * torch.logspace(-1.5, 1, 24)[:, None, None, None]
    eps = torch.logspace(-1.2, 0.5, 24)[torch.randperm(24, generator=generator)]
    found = project(z.clone(), x, eps, "l1")
    for i in range(24):
        args = (x[i].double().flatten().numpy(), z[i].double().flatten().numpy(), float(eps[i]))
        assert np.abs(found[i].flatten().numpy() - nearest_by_quadratic_programming(*args)).max() < 2e-5
    inside = distance(z.clamp(0, 1), x, "l1") <= eps
    assert 0 < inside.sum() < 24
    assert torch.allclose(found[inside], z.clamp(0, 1)[inside], atol=1e-7)
    one = project(z[3:4].clone(), x[3:4], float(eps[3]), "l1")
    assert torch.equal(one, found[3:4]), "a row does not depend on the others"


@pytest.mark.parametrize("spread", [1e-6, 0.02, 1.0, 100.0])
@pytest.mark.parametrize("eps", [0.0, 1e-4, 1.0, 12.0, 1e4])
def test_the_l1_projection_uses_the_whole_radius_at_any_scale(spread, eps):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    z = x + spread * torch.randn(x.shape, generator=generator)
    want = (z.clamp(0, 1) - x).double().abs().sum((1, 2, 3)).clamp(max=eps)
    given = z.clone()
    found = project(given, x, eps, "l1")
    assert found.data_ptr() == given.data_ptr()
    norms = (found - x).double().abs().sum((1, 2, 3))
    assert norms.max() <= eps + SLACK["l1"]
    # Adding an offset to an image rounds to steps of 6e-8, so the smallest offsets get lost in part.
    assert torch.allclose(norms, want, rtol=1e-5, atol=3072 * 6e-8)
    assert 0 <= found.min() <= found.max() <= 1


def test_an_l1_step_moves_the_pixels_of_the_largest_gradients():
    gradient = torch.tensor([[5.0, -4, 3, 0, 1], [0, 0, 0, -1, 0]]).view(2, 1, 1, 5)
    step = steepest(gradient.clone(), "l1", 0.4).view(2, 5)
    assert torch.allclose(step, torch.tensor([[0.5, -0.5, 0, 0, 0], [0, 0, 0, -1, 0]]))
    by_row = steepest(gradient.clone(), "l1", torch.tensor([0.55, 0.0])).view(2, 5)
    assert torch.allclose(by_row, torch.tensor([[1 / 3, -1 / 3, 1 / 3, 0, 0], [0, 0, 0, -1, 0]]))
    assert torch.allclose(steepest(gradient.clone(), "l1", 1.0).abs().flatten(1).sum(1), torch.ones(2))
