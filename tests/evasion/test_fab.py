import pytest
import torch
from torch import nn

from holdfast.errors import UserError
from holdfast.evasion import APGD, FAB
from holdfast.evasion.balls import SLACK, distance
from holdfast.evasion.planes import dual_norm, onto_plane
from holdfast.models import build_model
from holdfast.run import Run


class Linear(nn.Module):
    def __init__(self, classes=5, pixels=48):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(pixels, classes, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight


@pytest.fixture(scope="module")
def linear():
    model = Linear()
    x = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    x[:, 0, :2].round_()  # some pixels sit at the edge of the box
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@pytest.fixture(scope="module")
def network():
    model = build_model("convnet", num_classes=6, image_shape=(3, 12, 12), run=Run(seed=3)).eval()
    x = torch.rand(12, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def exact(model, x, y, norm):
    """The distance to the nearest of the planes between two classes, within the box."""
    w = model.weight.detach()
    logits = model(x).detach()
    best = torch.full((len(x),), float("inf"))
    for other in range(w.shape[1]):
        normal = (w[:, other] - w[:, y].T).view(x.shape)
        way = logits.gather(1, y[:, None]).squeeze(1) - logits[:, other]
        far = distance(onto_plane(x, normal, way, norm), torch.zeros_like(x), norm)
        best = torch.where(y == other, best, torch.minimum(best, far))
    return best


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("targets", [0, 4])
def test_the_distance_to_a_linear_boundary_is_exact_within_a_per_cent(linear, norm, targets):
    model, x, y = linear
    outcome = FAB(norm=norm, steps=10, targets=targets).run(model, x, y, run=Run())
    assert outcome.success.all()
    ratio = outcome.distance / exact(model, x, y, norm)
    assert ratio.min() >= 1 - 1e-5
    assert ratio.max() <= 1.01


def test_the_targets_are_the_likeliest_wrong_classes(linear):
    model, x, y = linear
    order = model(x).argsort(1, descending=True)
    distances = [FAB(norm="l2", steps=10, targets=n).run(model, x, y, run=Run()).distance for n in (1, 2, 4)]
    w = model.weight.detach()
    normal = (w[:, order[:, 1]].T - w[:, y].T).view(x.shape)
    gap = model(x).detach().gather(1, order[:, :2]).diff(dim=1).squeeze(1).neg()
    assert (distances[0] >= gap / dual_norm(normal, "l2") * (1 - 1e-5)).all()
    assert (distances[1] <= distances[0] * 1.001).all()
    assert (distances[2] <= distances[1] * 1.001).all()
    assert (distances[2] < distances[0] * 0.99).any()


@pytest.mark.parametrize("targets", [0, 3])
def test_with_a_radius_a_sample_is_left_alone_once_inside(network, targets):
    model, x, y = network
    free = FAB(norm="l2", steps=15, targets=targets).run(model, x, y, run=Run())
    eps = float(free.distance.median())
    bound = FAB(norm="l2", steps=15, targets=targets, eps=eps, give_up=None).run(model, x, y, run=Run())
    clear = free.distance < eps * 0.99
    assert bound.success[clear].all()
    assert not bound.success[free.distance > eps].any()
    assert (bound.distance <= eps + SLACK["l2"]).all()
    assert (bound.gradients[clear] < free.gradients[clear] / 1.5).all()
    assert torch.equal(bound.gradients[~bound.success], free.gradients[~bound.success])


def test_attempts_that_are_far_off_are_given_up_without_changing_what_is_found(network):
    model, x, y = network
    free = FAB(norm="l2", steps=60, targets=3).run(model, x, y, run=Run())
    eps = float(free.distance.quantile(0.3))
    to_the_end, given_up = (
        FAB(norm="l2", steps=60, targets=3, eps=eps, give_up=factor).run(model, x, y, run=Run())
        for factor in (None, 2.0)
    )
    assert torch.equal(given_up.success, to_the_end.success)
    assert 0 < given_up.success.sum() < 6
    stands = ~given_up.success
    assert (to_the_end.gradients[stands] == 61 * 3).all()
    assert (given_up.gradients[stands] >= 11 * 3).all()
    assert given_up.gradients[stands].float().mean() < 0.6 * 61 * 3
    endless = FAB(norm="l2", steps=60, targets=3, give_up=1).run(model, x, y, run=Run())
    assert torch.equal(endless.distance, free.distance), "without a radius nothing is given up"


def test_gradients_are_counted_one_for_each_boundary_looked_at(network):
    model, x, y = network
    assert (FAB(steps=7).run(model, x, y, run=Run()).gradients == 8 * 6).all()
    assert (FAB(steps=7, targets=3).run(model, x, y, run=Run()).gradients == 8 * 3).all()
    assert (FAB(steps=7, targets=3, restarts=2).run(model, x, y, run=Run()).gradients == 8 * 3 * 2).all()
    assert (FAB(steps=7, targets=9).run(model, x, y, run=Run()).gradients == 8 * 5).all(), "five other classes"


def test_more_steps_and_restarts_never_end_farther_away(network):
    model, x, y = network

    def found(**fields):
        outcome = FAB(norm="l2", **fields).run(model, x, y, run=Run())
        return outcome.distance.where(outcome.success, torch.inf)

    short, longer, restarted = found(steps=6), found(steps=18), found(steps=6, restarts=3)
    assert (longer <= short * 1.001).all()
    assert (restarted <= short * 1.001).all()
    assert (restarted < short * 0.999).any()


def test_it_finds_points_nearer_than_a_ball_in_which_an_ascent_succeeds(network):
    model, x, y = network
    found = FAB(steps=20).run(model, x, y, run=Run()).distance
    for eps in found.quantile(torch.tensor([0.3, 0.7])).tolist():
        climbed = APGD(eps=eps, steps=30).run(model, x, y, run=Run()).success
        assert (found[climbed] <= eps * 1.02).all()


def test_scaling_the_logits_changes_nothing(network):
    model, x, y = network

    class Scaled(nn.Module):
        def forward(self, x):
            return 4096 * model(x)  # a power of two: rounding is the same

    plain, scaled = (FAB(steps=5, targets=2).run(m, x, y, run=Run()) for m in (model, Scaled()))
    assert torch.allclose(plain.distance, scaled.distance, rtol=1e-4)


def test_bf16_does_not_reach_it(network):
    model, x, y = network
    outcomes = [FAB(steps=4).run(model, x, y, run=Run(precision=p)).x_adv for p in ("fp32", "bf16")]
    assert torch.equal(*outcomes)


def test_a_radius_beyond_the_box_is_refused():
    with pytest.raises(UserError, match=r"fab: eps must be a number in .* got 8. Did you mean 8/255"):
        FAB(eps=8)
    FAB(eps=8, norm="l2")


@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_parts_that_a_step_is_done_in_do_not_matter(network, norm, targets, monkeypatch):
    model, x, y = network
    attack = FAB(norm=norm, steps=4, targets=targets)
    expected = attack.run(model, x, y, run=Run(device="cpu"))
    monkeypatch.setattr("holdfast.evasion.pool._CACHEABLE", 3 * x[0].numel())
    apart = attack.run(model, x, y, run=Run(device="cpu"))
    assert torch.equal(apart.x_adv, expected.x_adv)
