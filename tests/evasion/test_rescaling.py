import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.evasion.rescaling import Rescaling


def case(seed, n=7, eps=0.1, zeros=0.1):
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 6, 6, generator=rng)
    x[0].round_()  # half of the pixels at the edges of the box
    delta = (torch.rand(x.shape, generator=rng) * 2 - 1) * eps
    delta[torch.rand(x.shape, generator=rng) < zeros] = 0
    return x, (x + delta).clamp(0, 1) - x


def clipped(x, delta, factor, eps):
    """The definition."""
    return torch.minimum(torch.maximum((factor * delta).clamp(-eps, eps), -x), 1 - x)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 0.999), zeros=st.sampled_from([0.0, 0.1, 0.9]))
def test_the_norm_is_hit_and_the_ball_and_the_box_are_kept(seed, share, zeros):
    x, delta = case(seed, zeros=zeros)
    scaling = Rescaling(x, delta, 0.1)
    goal = share * scaling.corner
    got = scaling.to_norm(goal)
    assert ((got.flatten(1).double().norm(dim=1) - goal).abs() < 1e-4).all()
    assert got.abs().max() <= 0.1 + 1e-6
    assert (x + got).min() >= -1e-6
    assert (x + got).max() <= 1 + 1e-6


def test_it_is_the_definition_with_the_factor_that_bisection_finds():
    x, delta = case(1)
    scaling = Rescaling(x, delta, 0.1)
    goal = 0.8 * scaling.corner
    low, high = torch.zeros(len(x)), torch.full((len(x),), 1e6)
    for _ in range(80):
        middle = (low + high) / 2
        norm = clipped(x, delta, middle.view(-1, 1, 1, 1), 0.1).flatten(1).norm(dim=1)
        low, high = torch.where(norm < goal, middle, low), torch.where(norm < goal, high, middle)
    torch.testing.assert_close(scaling.factor(goal).float(), high, rtol=1e-4, atol=0)
    expected = clipped(x, delta, high.view(-1, 1, 1, 1), 0.1)
    torch.testing.assert_close(scaling.to_norm(goal), expected, atol=1e-5, rtol=0)


def test_a_factor_of_one_gives_the_perturbation_back_bit_for_bit():
    x, delta = case(2)
    scaling = Rescaling(x, delta, 0.0999)  # of a ball that rounding has left
    assert torch.equal(scaling.scaled(torch.ones(len(x))), delta)


def test_the_corner_is_every_moved_pixel_at_its_bound():
    x, delta = case(3)
    scaling = Rescaling(x, delta, 0.1)
    corner = clipped(x, delta.sign(), 0.1, 0.1)
    torch.testing.assert_close(scaling.to_norm(1e9), corner)
    torch.testing.assert_close(scaling.corner.float(), corner.flatten(1).norm(dim=1))
    assert scaling.factor(scaling.corner).isinf().all()


def test_nothing_cannot_be_stretched():
    x, _ = case(4)
    scaling = Rescaling(x, torch.zeros_like(x), 0.1)
    assert not scaling.to_norm(1.0).any()
    assert not scaling.corner.any()
