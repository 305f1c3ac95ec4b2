import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast import catalog
from holdfast.errors import UserError
from holdfast.evasion import FGSM, PGD
from holdfast.models import build_model
from holdfast.run import Run, content_keys, uniform_at


class Linear(nn.Module):
    def __init__(self, classes=3, pixels=27, seed=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, pixels, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


def linear(n=40, classes=3):
    model = Linear(classes)
    x = torch.rand(n, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    return model, x, model(x).argmax(1)


def small_net(n=48):
    run = Run(seed=3)
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=run)
    x = torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, x, model.eval()(x).argmax(1)


def test_on_a_linear_model_one_step_of_the_margin_is_the_closed_form():
    model, x, y = linear(classes=2)
    weight = model.weight.detach()
    towards = (weight[1 - y] - weight[y]).sign().view(x.shape)
    expected = (x + 0.05 * towards).clamp(0, 1)
    attack = PGD(eps=0.05, steps=1, step=0.05, random_start=False, loss="margin")
    assert torch.equal(attack(model, x, y, run=Run()), expected)
    # With two classes the cross-entropy leads the same way.
    assert torch.equal(FGSM(eps=0.05)(model, x, y, run=Run()), expected)


def test_on_a_linear_model_l2_reaches_the_exact_distance_to_the_boundary():
    model, x, y = linear(classes=2)
    x = 0.4 + 0.2 * x  # far from the edges of the box, which the formula does not know
    y = model(x).argmax(1)
    weight = model.weight.detach().double()
    normal = weight[1 - y] - weight[y]
    gap = -(normal * x.flatten(1)).sum(1) / normal.norm(dim=1)
    for eps in (0.31, 0.35, 0.4):
        outcome = PGD(eps=eps, norm="l2", steps=20, random_start=False).run(model, x, y, run=Run())
        sure = (gap - eps).abs() > 1e-3
        assert torch.equal(outcome.success[sure], gap[sure] < eps)
        assert 3 < outcome.success.sum() < 38


def test_l1_spends_its_radius_on_few_pixels_and_finds_what_noise_of_that_norm_does_not():
    model, x, y = small_net()
    outcome = PGD(eps=4, norm="l1", steps=20).run(model, x, y, run=Run())
    noise = PGD(eps=4, norm="l1", steps=1, step=1e-9).run(model, x, y, run=Run())
    assert outcome.success.sum() > noise.success.sum() + 5
    moved = (outcome.x_adv != x).flatten(1).sum(1)[~outcome.success]
    assert (moved < 300).all()
    assert outcome.distance.max() <= 4 + 1e-5


def test_attacks_say_which_norms_they_know():
    for spec in ("fgsm(norm=l1)", "fgsm(norm=l0)"):
        with pytest.raises(UserError, match=r"^fgsm: norm must be .*'linf'.*'l2'.* got 'l[10]'"):
            catalog.build(spec)


def test_fgsm_is_one_step_of_pgd():
    model, x, y = small_net()
    one = PGD(eps=0.01, steps=1, random_start=False)
    assert one.step_length == 0.01
    fgsm, pgd = FGSM(eps=0.01).run(model, x, y, run=Run()), one.run(model, x, y, run=Run())
    assert torch.equal(fgsm.x_adv, pgd.x_adv)
    assert 0 < fgsm.success.sum() < len(x)


def plain_pgd(model, x, y, eps, step, steps, start):
    """The algorithm as the paper writes it; says who was fooled at any iterate, and the first such point."""
    at, fooled, first = start.clone(), torch.zeros(len(x), dtype=torch.bool), x.clone()
    for i in range(steps + 1):
        at = at.detach().requires_grad_()
        logits = model(at)
        new = (logits.argmax(1) != y) & ~fooled
        first[new] = at.detach()[new]
        fooled |= new
        if i < steps:
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), at)
            at = torch.minimum(torch.maximum(at + step * gradient.sign(), x - eps), x + eps).clamp(0, 1)
    return fooled, first


def starts(attack, x, run, restart):
    """The random starts, from the definition in `holdfast.run`: uniform numbers by content, restart and seed."""
    keys = content_keys(x) + restart * 0x632BE59BD9B4E019
    numbers = uniform_at(run.seed_for("pgd"), keys, x[0].numel()).view(x.shape)
    return (x + attack.eps * (2 * numbers - 1)).clamp(0, 1)


def test_restarts_are_the_union_of_independent_runs():
    model, x, y = small_net(200)
    model.double()
    model.forward = lambda x, forward=model.forward: forward(x.double())
    run = Run(seed=7)
    attack = PGD(eps=0.01, steps=1, step=0.001, restarts=3)
    outcome = attack.run(model, x, y, run=run)
    union, point = torch.zeros(len(x), dtype=torch.bool), x.clone()
    alone = []
    for restart in range(3):
        fooled, first = plain_pgd(model, x, y, 0.01, 0.001, 1, starts(attack, x, run, restart))
        new = fooled & ~union
        point[new] = first[new]
        union |= fooled
        alone.append(int(fooled.sum()))
    assert torch.equal(outcome.success, union)
    assert union.sum() > max(alone), "the test needs restarts that add something"
    assert torch.allclose(outcome.x_adv[union], point[union], atol=1e-6)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.15)])
def test_every_strengthening_finds_at_least_as_much(norm, eps):
    model, x, y = small_net()
    runs = [
        FGSM(eps=eps, norm=norm),
        PGD(eps=eps, norm=norm, steps=10),
        PGD(eps=eps, norm=norm, steps=10, restarts=4),
        PGD(eps=1 if norm == "linf" else 10, norm=norm, steps=20),
    ]
    found = [int(attack.run(model, x, y, run=Run()).success.sum()) for attack in runs]
    assert found == sorted(found)
    assert found[0] < found[2]
    assert found[3] == len(x)


def test_queries_count_the_points_seen_and_gradients_the_steps():
    model, x, y = small_net()
    outcome = PGD(eps=0.01, steps=6, restarts=2).run(model, x, y, run=Run())
    assert (outcome.queries[~outcome.success] == 12).all()
    fell = outcome.queries[outcome.success]
    assert ((fell >= 1) & (fell <= 12)).all()
    assert torch.equal(outcome.queries, outcome.gradients)


def test_a_sample_that_stands_is_returned_where_its_loss_was_highest():
    """On a loss that falls behind a ridge, the last point is not the best one."""

    class Ridge(nn.Module):
        def forward(self, x):
            hill = 1 - (x.mean((1, 2, 3)) - 0.6).abs()
            return torch.stack([torch.ones_like(hill) * 2, hill], 1)

    x = torch.full((1, 1, 2, 2), 0.5)
    y = torch.tensor([0])
    # Steps of 0.07 go 0.50, 0.57, 0.64, 0.57, 0.64: the ridge at 0.60 is nearest at 0.57.
    outcome = PGD(eps=0.3, steps=4, step=0.07, random_start=False).run(Ridge(), x, y, run=Run())
    assert not outcome.success
    assert torch.allclose(outcome.x_adv, torch.full_like(x, 0.57), atol=1e-6)
    assert torch.allclose(outcome.logits, Ridge()(outcome.x_adv))


def test_targets_lead_to_the_likeliest_wrong_classes_in_turn():
    model, x, y = linear(n=200, classes=5)
    ranks = model(x).scatter(1, y[:, None], -float("inf")).argsort(1, descending=True)
    outcome = PGD(eps=0.15, steps=10, targets=2, loss="margin").run(model, x, y, run=Run())
    fell = outcome.success
    reached = outcome.logits.argmax(1)
    assert fell.sum() > 20
    # Nearly all fall to the runner-up; some only to the next.
    assert (reached[fell] == ranks[fell, 0]).float().mean() > 0.5
    more = PGD(eps=0.15, steps=10, targets=99, loss="margin").run(model, x, y, run=Run())
    assert (more.success | ~fell).all()
    assert more.queries.max() <= 4 * 10, "five classes leave four targets"


def test_momentum_remembers_earlier_gradients():
    class Zigzag(nn.Module):
        """The gradient's sign alternates in one pixel; in the other it is steady but weak."""

        def forward(self, x):
            a, b = x[:, 0, 0, 0], x[:, 0, 0, 1]
            return torch.stack([torch.full_like(a, 9.0), 0.1 * b - (a - 0.5).abs()], 1)

    x = torch.tensor([[[[0.49, 0.2]]]])
    y = torch.tensor([0])
    plain = PGD(eps=0.2, step=0.05, steps=3, random_start=False)
    heavy = PGD(eps=0.2, step=0.05, steps=3, random_start=False, momentum=1.0)
    # The first step overshoots the ridge at 0.5. Without memory the second goes back; with it, the sum of the two
    # (mean-normalised) gradients has sign zero there, and the pixel rests.
    assert plain.run(Zigzag(), x, y, run=Run()).x_adv[0, 0, 0, 0] == pytest.approx(0.49, abs=1e-6)
    assert heavy.run(Zigzag(), x, y, run=Run()).x_adv[0, 0, 0, 0] == pytest.approx(0.49, abs=1e-6)
    assert heavy.run(Zigzag(), x, y, run=Run()).x_adv[0, 0, 0, 1] == pytest.approx(0.35, abs=1e-6)


@pytest.mark.parametrize(
    ("spec", "length"),
    [
        ("pgd(steps=10)", 2 / 255),
        ("pgd(steps=20)", 2 / 255),
        ("pgd(steps=50)", 8 / 255 / 20),
        ("pgd(steps=1000)", 8 / 255 / 32),
        ("pgd(steps=1)", 8 / 255),
        ("pgd(steps=5)", 4 / 255),
        ("pgd(norm=l2, eps=0.5, steps=10)", 0.125),
        ("pgd(norm=l1, eps=12, steps=20)", 6.0),
        ("pgd(step=0.01)", 0.01),
    ],
)
def test_the_customary_step_lengths(spec, length):
    assert catalog.build(spec).step_length == pytest.approx(length)


def test_l2_takes_radii_over_one_and_linf_does_not():
    assert PGD(norm="l2", eps=3.0).eps == 3
    with pytest.raises(UserError, match=r"pgd: eps must be a number in \[0, 1\] for norm 'linf', got 8. Did you mean"):
        PGD(eps=8)
