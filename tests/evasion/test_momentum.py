import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.errors import UserError
from holdfast.evasion import DIFGSM, IFGSM, MIDITI, MIFGSM, NIFGSM, NISITIDI, SIFGSM, TIFGSM, VMIFGSM
from holdfast.evasion.momentum import gaussian, normalised, smoothed
from holdfast.run import Run, content_keys, uniform_at

EPS, STEPS = 0.1, 5


class Net(nn.Module):
    """Smooth, in float64, and without batch norm, so that the fast twin is the model itself."""

    def __init__(self, seed=0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(6, 3, 3, 3, generator=rng, dtype=torch.float64))
        self.last = nn.Parameter(torch.randn(4, 6, generator=rng, dtype=torch.float64))

    def forward(self, x):
        return F.conv2d(x.double() - 0.5, self.first, padding=1).tanh().mean((2, 3)) @ self.last.T


def batch(n=12):
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, Net()(x).argmax(1)


def slope(x, y, see=lambda z: [z]):
    """The gradient of the mean cross-entropy over what the model is shown instead of `x`, by autograd alone."""
    x = x.detach().requires_grad_()
    losses = [F.cross_entropy(Net()(copy).float(), y, reduction="sum") for copy in see(x)]
    (gradient,) = torch.autograd.grad(sum(losses) / len(losses), x)
    return gradient


def plain(x0, y, momentum=0.0, ahead=False, see=lambda z: [z], smooth=lambda g: g):
    """The loop as the papers write it."""
    x, memory = x0, torch.zeros_like(x0)
    for _ in range(STEPS):
        at = x + EPS / STEPS * momentum * memory if ahead else x
        gradient = smooth(slope(at, y, see))
        memory = momentum * memory + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
        x = (x + EPS / STEPS * memory.sign()).clamp(x0 - EPS, x0 + EPS).clamp(0, 1)
    return x


def assert_same(ours, theirs):
    """Up to the few pixels whose gradient is so near to zero that rounding decides its sign."""
    assert ((ours - theirs).abs() < 1e-6).double().mean() > 0.995


def attacked(attack, x, y):
    outcome = dataclasses.replace(attack, eps=EPS, steps=STEPS).run(Net(), x, y, run=Run())
    assert outcome.success.any()
    return outcome.x_adv


def test_with_every_part_switched_off_each_method_is_i_fgsm_bit_for_bit():
    x, y = batch()
    expected = plain(x, y)
    off = {"momentum": 0, "lookahead": "none", "diversity": 0, "kernel": 1, "scales": 1, "neighbours": 0}
    for method in (IFGSM, MIFGSM, NIFGSM, DIFGSM, TIFGSM, SIFGSM, VMIFGSM, MIDITI, NISITIDI):
        assert torch.equal(attacked(method(**off), x, y), expected), method.id


def test_each_part_does_what_its_paper_says():
    x, y = batch()
    scales = [2.0**-j for j in range(5)]

    def convolved(gradient):
        kernel = torch.outer(gaussian(5), gaussian(5)).float().expand(3, 1, 5, 5)
        return F.conv2d(gradient, kernel, padding=2, groups=3)

    assert_same(attacked(MIFGSM(), x, y), plain(x, y, momentum=1))
    assert_same(attacked(MIFGSM(momentum=0.5), x, y), plain(x, y, momentum=0.5))
    assert_same(attacked(NIFGSM(), x, y), plain(x, y, momentum=1, ahead=True))
    assert_same(attacked(SIFGSM(), x, y), plain(x, y, momentum=1, see=lambda z: [s * z for s in scales]))
    assert_same(attacked(TIFGSM(), x, y), plain(x, y, momentum=1, smooth=convolved))
    parts = [attacked(m, x, y) for m in (IFGSM(), MIFGSM(), NIFGSM(), SIFGSM(), TIFGSM(), DIFGSM(), VMIFGSM())]
    for i, a in enumerate(parts):
        assert all((a - b).abs().gt(1e-3).double().mean() > 0.001 for b in parts[:i])


def test_variance_tuning_adds_how_the_neighbours_differed_at_the_step_before():
    x0, y = batch()
    attack = VMIFGSM(eps=EPS, steps=3, neighbours=2)
    seed, key = Run().seed_for("vmi-fgsm"), content_keys(x0)

    def around(x, draw):
        uniforms = uniform_at(seed, key + torch.tensor(draw) * 0x3C6EF372FE94F82B, 192, offset=4)
        return x + (2 * uniforms - 1).view(x.shape) * 1.5 * EPS

    x, memory, variance = x0, 0, 0
    for t in range(3):
        gradient = slope(x, y)
        memory = memory + normalised(gradient + variance)
        variance = sum(slope(around(x, 1 + 3 * t + i), y) for i in (1, 2)) / 2 - gradient
        x = (x + EPS / 3 * memory.sign()).clamp(x0 - EPS, x0 + EPS).clamp(0, 1)
    outcome = attack.run(Net(), x0, y, run=Run())
    assert_same(outcome.x_adv, x)
    assert (outcome.gradients == 3 + 2 * 2).all()  # the last step needs no neighbours


def test_all_steps_are_taken_also_by_those_that_have_succeeded():
    x, y = batch()
    outcome = MIFGSM(eps=EPS, steps=STEPS).run(Net(), x, y, run=Run())
    assert (outcome.gradients == STEPS).all()
    assert (outcome.distance > 0.99 * EPS).all()
    assert SIFGSM(eps=EPS).run(Net(), x, y, run=Run()).gradients.unique().tolist() == [50]


def test_on_a_linear_model_momentum_changes_nothing_and_the_look_ahead_neither():
    class Linear(nn.Module):
        def forward(self, x):
            return torch.stack([x.flatten(1).sum(1), x[:, :, ::2].flatten(1).sum(1) * 2.1], 1).double()

    x, _ = batch()
    y = Linear()(x).argmax(1)
    expected = IFGSM(eps=EPS)(Linear(), x, y, run=Run())
    assert torch.equal(MIFGSM(eps=EPS)(Linear(), x, y, run=Run()), expected)
    assert torch.equal(NIFGSM(eps=EPS, lookahead="gradient")(Linear(), x, y, run=Run()), expected)


def test_a_random_start_depends_on_the_seed():
    x, y = batch()
    attack = IFGSM(eps=EPS, steps=1, step=1e-4, random_start=True)
    first, again, other = (attack(Net(), x, y, run=Run(seed=s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > EPS / 3


@pytest.mark.parametrize("side", [1, 3, 5, 15])
def test_the_kernel_sums_to_one_and_is_symmetric(side):
    kernel = gaussian(side)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    assert torch.equal(kernel, kernel.flip(0))
    flat = torch.ones(1, 2, 40, 40)
    inside = smoothed(flat, side)[:, :, 15:25, 15:25]
    torch.testing.assert_close(inside, torch.ones_like(inside))


def test_a_kernel_without_a_middle_is_refused():
    with pytest.raises(UserError, match=r"^ti-fgsm: kernel must be an odd number of pixels, got 4\.$"):
        TIFGSM(kernel=4)


def test_a_vanished_gradient_stays_zero():
    assert not normalised(torch.zeros(2, 3, 4, 4)).any()
    assert normalised(torch.full((1, 1, 2, 2), 1e-30)).tolist() == [[[[1, 1], [1, 1]]]]
