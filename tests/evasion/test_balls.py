import math

import pytest
import torch

from holdfast.evasion.balls import distance, project, steepest, uniforms_needed, within
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


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_points_fill_the_ball_evenly(norm):
    centre = torch.full((4000, 1, 1, 3), 0.5)
    points = within(centre, 0.25, norm, numbers(4000, uniforms_needed(norm, 3)))
    r = distance(points, centre, norm) / 0.25
    assert r.max() <= 1 + 1e-6
    # In d dimensions the radius of a uniform point to the power d is uniform on [0, 1].
    assert (r**3).mean() == pytest.approx(0.5, abs=3 * math.sqrt(1 / 12 / 4000))
    assert (points - centre).mean(0).abs().max() < 0.01


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


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gradient_without_direction_gives_none(norm):
    gradient = torch.zeros(2, 1, 2, 2)
    gradient[1, 0, 0] = torch.tensor([math.nan, -2.0])
    direction = steepest(gradient, norm)
    assert not direction[0].any()
    assert torch.equal(direction[1, 0], torch.tensor([[0.0, -1.0], [0.0, 0.0]]))
