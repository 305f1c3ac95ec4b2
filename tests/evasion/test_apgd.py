"""APGD against a plain implementation of its paper, and the laws of its losses and schedules."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast import catalog
from holdfast.errors import UserError
from holdfast.evasion import APGD, PGD
from holdfast.evasion.balls import normals
from holdfast.evasion.losses import loss_for
from holdfast.run import Run, content_keys, uniform_at


class Net(nn.Module):
    """A small smooth network in float64."""

    def __init__(self, classes=6, channels=3, seed=0, scale=0.1):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def random(*shape):
            return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

        self.filters, self.mixing, self.head = random(12, channels, 3, 3), random(12, 12, 3, 3), random(classes, 12)
        self.scale = scale

    def forward(self, x):
        hidden = F.silu(F.conv2d(x.double() - 0.5, self.filters))
        hidden = F.silu(F.conv2d(hidden, self.mixing, stride=2))
        return self.scale * hidden.mean((2, 3)) @ self.head.T


def images(n=40, model=None, size=8):
    x = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, (model or Net())(x).argmax(1)


def sturdy(n):
    """The images that are farthest from an error."""
    x, y = images()
    with torch.no_grad():
        nearest = loss_for("any", "margin")(Net()(x), y, y).argsort()[:n]
    return x[nearest], y[nearest]


# --- the algorithm as the papers write it, in lock step --------------------------------------------------------------


def rows(values):
    return values.view(-1, 1, 1, 1)


def norm_of(offset, norm):
    flat = offset.flatten(1)
    return {"linf": flat.abs().amax(1), "l2": flat.norm(dim=1), "l1": flat.abs().sum(1)}[norm]


def back(z, x, eps, norm):
    """On the ball, then in the box; for l_1 on both at once, by plain bisection."""
    if norm == "linf":
        return torch.minimum(torch.maximum(z, x - eps), x + eps).clamp(0, 1)
    if norm == "l2":
        offset = z - x
        return (x + offset * rows((eps / norm_of(offset, norm)).clamp(max=1))).clamp(0, 1)
    d = z - x
    low, high = torch.zeros(len(x), dtype=x.dtype), norm_of(d, "linf")

    def shrunk(by):
        v = d.sign() * (d.abs() - rows(by)).clamp(min=0)
        return torch.minimum(torch.maximum(v, -x), 1 - x)

    for _ in range(80):
        middle = (low + high) / 2
        over = norm_of(shrunk(middle), "l1") > eps
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return x + torch.where(rows(norm_of(shrunk(0 * low), "l1") <= eps), shrunk(0 * low), shrunk(high))


def dlr(z, y):
    order = z.sort(1).values
    own = z.gather(1, y[:, None]).squeeze(1)
    first = order[:, -1]
    return -(own - torch.where(z.argmax(1) == y, order[:, -2], first)) / (first - order[:, -3] + 1e-12)


def targeted_dlr(z, y, t):
    order = z.sort(1).values
    lead = (z.gather(1, t[:, None]) - z.gather(1, y[:, None])).squeeze(1)
    return lead / (order[:, -1] - (order[:, -3] + order[:, -4]) / 2 + 1e-12)


class Reference:
    """One run of APGD on all samples, every step for every sample; notes who was fooled at any point."""

    def __init__(self, model, y, loss):
        self.model, self.y, self.loss = model, y, loss
        self.fooled = torch.zeros(len(y), dtype=torch.bool)
        self.peaks = torch.empty(0)

    def at(self, x, counts=True):
        x = x.detach().requires_grad_()
        z = self.model(x)
        loss = self.loss(z)
        (g,) = torch.autograd.grad(loss.sum(), x)
        if counts:
            self.fooled |= z.argmax(1) != self.y
        return loss.detach(), g

    def climb(self, x0, x, eps, norm, n, rho=0.75):
        loss, g = self.at(x)
        best, best_g, best_loss = x.clone(), g.clone(), loss.clone()
        losses, steps = [loss], torch.full((len(x),), 2 * eps, dtype=x.dtype)
        old, halved, then = x.clone(), torch.ones(len(x), dtype=torch.bool), best_loss.clone()
        k, since = max(int(0.22 * n), 1), 0
        for i in range(n):
            a = 1 if i == 0 else 0.75
            direction = g.sign() if norm == "linf" else g / rows(norm_of(g, "l2") + 1e-12)
            u = back(x + rows(steps) * direction, x0, eps, norm)
            x, old = back(x + a * (u - x) + (1 - a) * (x - old), x0, eps, norm), x
            loss, g = self.at(x)
            losses.append(loss)
            up = loss > best_loss
            best, best_g = torch.where(rows(up), x, best), torch.where(rows(up), g, best_g)
            best_loss = torch.where(up, loss, best_loss)
            since += 1
            if since == k:
                rises = sum((losses[-j] > losses[-j - 1]).long() for j in range(1, k + 1))
                cut = (rises <= rho * k) | (~halved & (then >= best_loss))
                halved, then, since = cut, best_loss.clone(), 0
                steps = torch.where(cut, steps / 2, steps)
                x, g = torch.where(rows(cut), best, x), torch.where(rows(cut), best_g, g)
                k = max(k - max(int(0.03 * n), 1), max(int(0.06 * n), 1))
        self.peaks = best_loss

    def sparse_climb(self, x0, start, eps, n):
        d, early = x0[0].numel(), n * 3 // 10
        x = start
        for radius, iterations in ((3 * eps, early), (2 * eps, early), (eps, n - 2 * early)):
            x = self.sparse_phase(x0, back(x, x0, radius, "l1"), radius, iterations, d, radius == eps)
        return x

    def sparse_phase(self, x0, x, eps, n, d, counts):
        loss, g = self.at(x, counts)
        best, best_g, best_loss = x.clone(), g.clone(), loss.clone()

        def changed(z):
            return ((z - x0) != 0).flatten(1).sum(1).double()

        before = changed(x)
        top, step = before / d / 1.5, torch.full((len(x),), eps, dtype=x.dtype)
        for i in range(n):
            place = ((1 - top) * d).clamp(0, d - 1).long()
            least = g.abs().flatten(1).sort(1).values.gather(1, place[:, None])
            signs = (g * (g.abs() >= rows(least))).sign()
            x = back(x + rows(step) * signs / rows(norm_of(signs, "l1") + 1e-10), x0, eps, "l1")
            loss, g = self.at(x, counts)
            up = loss > best_loss
            best, best_g = torch.where(rows(up), x, best), torch.where(rows(up), g, best_g)
            best_loss = torch.where(up, loss, best_loss)
            if (i + 1) % max(int(0.04 * n), 1) == 0:
                now = changed(best)
                sparser = now / before < 0.95
                top, before = now / d / 1.5, now
                step = torch.where(sparser, torch.full_like(step, eps), step / 1.5).clamp(eps / 10, eps)
                x, g = torch.where(rows(sparser), best, x), torch.where(rows(sparser), best_g, g)
        self.peaks = best_loss
        return best


def start_of(attack, x, run, round=0):
    """The attack's own random numbers, from their definition; the rest is the paper's."""
    keys = content_keys(x) + round * 0x632BE59BD9B4E019
    u = uniform_at(run.seed_for("apgd"), keys, x[0].numel())
    t = (2 * u - 1 if attack.norm == "linf" else normals(u)).double().view(x.shape)
    if attack.norm == "l1":
        return x.double() + t
    return (x.double() + attack.eps * t / rows(norm_of(t, attack.norm))).clamp(0, 1)


def reference(attack, model, x, y, run):
    """Who is fooled, by the plain algorithm: restarts and targets one after the other, every sample to the end."""
    with torch.no_grad():
        ranked = model(x).scatter(1, y[:, None], -math.inf).argsort(1, descending=True)
    fooled = torch.zeros(len(x), dtype=torch.bool)
    peaks = torch.zeros(len(x), dtype=torch.float64)
    for round in range(attack.restarts * max(attack.targets, 1)):
        if attack.targets:
            t = ranked[:, round % attack.targets]
            climb = Reference(model, y, lambda z, t=t: targeted_dlr(z, y, t))
        elif attack.loss == "dlr":
            climb = Reference(model, y, lambda z: dlr(z, y))
        else:
            climb = Reference(model, y, lambda z: F.cross_entropy(z, y, reduction="none"))
        start = start_of(attack, x, run, round)
        if attack.norm == "l1":
            climb.sparse_climb(x.double(), start, attack.eps, attack.steps)
        else:
            climb.climb(x.double(), start, attack.eps, attack.norm, attack.steps)
        fooled, peaks = fooled | climb.fooled, climb.peaks
    return fooled, peaks


ATTACKS = [
    APGD(eps=0.025, steps=40),
    APGD(eps=0.025, steps=40, loss="dlr"),
    APGD(eps=0.025, steps=30, targets=3),
    APGD(eps=0.3, norm="l2", steps=40, restarts=2),
    APGD(eps=0.3, norm="l2", steps=30, loss="dlr"),
    APGD(eps=2.0, norm="l1", steps=40),
    APGD(eps=2.0, norm="l1", steps=25, targets=2),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_the_same_samples_fall_as_to_the_papers_algorithm_in_lock_step(attack):
    x, y = images(40)
    run = Run(seed=4, batch_size=16)
    outcome = attack.run(Net(), x, y, run=run)
    expected, peaks = reference(attack, Net(), x, y, run)
    assert torch.equal(outcome.success, expected)
    assert 6 < expected.sum() < 34
    if attack.restarts > 1 or attack.targets:
        return
    # Those who stand have climbed just as high, over all the halvings and returns.
    left = ~expected
    loss = loss_for("any", attack.loss)(outcome.logits, y, y).double()
    assert torch.isclose(loss, peaks, rtol=1e-4, atol=1e-5)[left].double().mean() > 0.9


# --- the schedule ----------------------------------------------------------------------------------------------------


def test_checkpoints_come_closer_and_closer_together():
    assert APGD().periods() == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert APGD(steps=1).periods() == {}
    assert APGD(steps=5).periods() == {1: 1, 2: 1, 3: 1, 4: 1}


def test_the_l1_search_comes_down_to_the_ball_in_three_phases():
    assert APGD(norm="l1", eps=12).phases() == [(36, 30), (24, 30), (12, 40)]
    assert APGD(norm="l1", eps=12, steps=2).phases() == [(12, 2)]
    x, y = images(6)
    for steps, queries in ((20, 22), (2, 2)):
        outcome = APGD(norm="l1", eps=1e-3, steps=steps).run(Net(), x, y, run=Run())
        assert outcome.gradients.tolist() == [queries] * 6


class Watched(APGD):
    """Notes the state after every query."""

    def search(self, aim, seed):
        search = super().search(aim, seed)
        query = search.query

        def watched(oracle, state):
            answer = query(oracle, state)
            self.seen.append({name: value.clone() for name, value in state.items()})
            return answer

        search.query = watched
        return search


def watch(x, y, **fields):
    attack = Watched(**fields)
    object.__setattr__(attack, "seen", [])
    attack.run(Net(), x, y, run=Run())
    return attack.seen


@pytest.mark.parametrize("fields", [{"eps": 0.004}, {"eps": 0.05, "norm": "l2"}, {"eps": 0.3, "norm": "l1"}], ids=str)
def test_the_highest_loss_never_falls_within_a_ball_and_is_that_of_the_highest_point(fields):
    x, y = sturdy(10)
    seen = watch(x, y, steps=40, **fields)
    balls = [range(13), range(13, 26), range(26, 42)] if fields.get("norm") == "l1" else [range(40)]
    assert all(len(state["x"]) == 10 for state in seen), "the test is about items that stand"
    for ball in balls:
        peaks = torch.stack([seen[i]["peak_loss"] for i in ball])
        assert (peaks.diff(dim=0) >= 0).all()
        assert (peaks[-1] > peaks[0]).any()
        last = seen[ball[-1]]
        again = loss_for("any", "ce")(Net()(last["peak"]).float(), last["y"], last["y"])
        assert torch.allclose(again, last["peak_loss"], rtol=1e-4)


def test_steps_are_halved_at_checkpoints_and_nowhere_else():
    x, y = sturdy(10)
    seen = watch(x, y, eps=0.004, steps=100)
    lengths = torch.stack([state["length"] for state in seen])  # as they were for the step that led to the query
    assert torch.equal(lengths[0], torch.full((10,), 0.008))
    factors = lengths[1:] / lengths[:-1]
    changed = (factors != 1).any(1).nonzero().squeeze(1).tolist()
    assert set(changed) <= set(APGD().periods())
    assert changed
    assert set(factors[changed].flatten().tolist()) <= {0.5, 1.0}


def test_a_sample_pays_for_no_step_after_the_one_that_fooled_the_model():
    x, y = images(40)
    outcome = APGD(eps=0.025, steps=40).run(Net(), x, y, run=Run())
    assert outcome.queries[outcome.success].float().mean() < 20
    assert (outcome.queries[~outcome.success] == 40).all()


# --- randomised models -----------------------------------------------------------------------------------------------


class Noisy(Net):
    """Adds noise to its input, which drowns the gradient's sign in single passes."""

    def forward(self, x):
        return super().forward(x + 0.5 * torch.randn(x.shape))


@pytest.mark.filterwarnings("ignore:the model is not deterministic")
def test_the_mean_of_several_passes_guides_better_than_one():
    x, y = images(40)
    found = {}
    for eot in (1, 20):
        outcome = APGD(eps=0.05, steps=15, eot=eot).run(Noisy(), x, y, run=Run())
        assert (outcome.gradients[~outcome.success] == 15 * eot).all()
        found[eot] = (Net()(outcome.x_adv).argmax(1) != y).sum()
    assert found[20] > found[1]


def test_the_mean_over_passes_of_a_fixed_model_changes_nothing():
    x, y = images(20)
    once, often = (APGD(eps=0.02, steps=12, eot=n).run(Net(), x, y, run=Run()) for n in (1, 3))
    assert torch.equal(once.success, often.success)
    assert torch.allclose(once.x_adv, often.x_adv, atol=1e-5)
    assert torch.equal(3 * once.queries, often.queries)


# --- losses ----------------------------------------------------------------------------------------------------------


def logits_and_classes(n=50, classes=6):
    logits = torch.randn(n, classes, generator=torch.Generator().manual_seed(3))
    y = torch.arange(n) % classes
    return logits, y, (y + 1 + torch.arange(n) % (classes - 1)) % classes


@pytest.mark.parametrize("aim", ["any", "ranks", "given"])
def test_dlr_does_not_change_when_the_logits_are_scaled_or_shifted(aim):
    logits, y, target = logits_and_classes()
    loss = loss_for(aim, "dlr")
    assert torch.allclose(loss(7 * logits + 3, y, target), loss(logits, y, target), atol=1e-5)
    assert not torch.allclose(loss(logits**3, y, target), loss(logits, y, target), atol=1e-1)


def test_dlr_is_the_papers_ratio():
    logits, y, target = logits_and_classes()
    assert torch.allclose(loss_for("any", "dlr")(logits, y, target), dlr(logits, y))
    assert torch.allclose(loss_for("ranks", "dlr")(logits, y, target), targeted_dlr(logits, y, target))
    assert not loss_for("any", "dlr")(torch.ones(2, 4), y[:2], y[:2]).any(), "equal logits are no division by zero"


def test_dlr_tells_on_which_side_of_the_boundary_a_point_is():
    logits, y, target = logits_and_classes()
    assert torch.equal(loss_for("any", "dlr")(logits, y, target) > 0, logits.argmax(1) != y)
    assert torch.equal(loss_for("given", "dlr")(logits, y, target) > 0, logits.argmax(1) == target)


def test_dlr_says_how_many_classes_it_needs():
    x = torch.rand(4, 3, 8, 8)
    for classes, attack, message in (
        (2, APGD(loss="dlr"), "the loss 'dlr' compares 3 classes, but the model has 2; take 'ce' or 'margin'"),
        (3, APGD(targets=2), "the targeted loss 'dlr' compares 4 classes, but the model has 3"),
        (2, PGD(loss="dlr"), "the loss 'dlr' compares 3 classes"),
    ):
        model = Net(classes)
        with pytest.raises(UserError, match=message):
            attack.run(model, x, model(x).argmax(1), run=Run())
    model = Net(3)
    APGD(loss="dlr", steps=2).run(model, x, model(x).argmax(1), run=Run())


def test_dlr_keeps_its_gradient_where_the_cross_entropy_has_none():
    x, y = images(40)
    masked = Net(scale=1000.0)
    survivors = {
        loss: APGD(eps=0.05, steps=20, loss=loss).run(masked, x, y, run=Run()).robust_accuracy for loss in ("ce", "dlr")
    }
    assert survivors["dlr"] < survivors["ce"] - 0.3


# --- what it takes ---------------------------------------------------------------------------------------------------


def test_restarts_are_the_union_of_single_runs():
    x, y = images(40)
    attack = APGD(eps=0.025, steps=1, restarts=3)
    one, three = (dataclasses.replace(attack, restarts=n).run(Net(), x, y, run=Run()).success for n in (1, 3))
    assert (three | ~one).all()
    assert three.sum() > one.sum()


def test_targets_use_the_targeted_dlr_whatever_the_loss():
    x, y = images(20)
    by_loss = [APGD(eps=0.02, steps=5, targets=2, loss=loss)(Net(), x, y, run=Run()) for loss in ("ce", "dlr")]
    assert torch.equal(*by_loss)


def test_the_spec_is_readable():
    assert str(catalog.build("apgd(norm=l2, eps=0.5, targets=9)").spec) == "apgd(eps=0.5, norm='l2', targets=9)"
    with pytest.raises(UserError, match=r"apgd: norm must be .*'linf', 'l2', 'l1'"):
        APGD(norm="l0")


def test_on_a_linear_model_l1_spends_the_radius_on_the_heaviest_pixels():
    """The best linear perturbation sets the heaviest pixels to the edge of the box until the radius is spent."""

    class Linear(nn.Module):
        weight = torch.randn(75, generator=torch.Generator().manual_seed(0))

        def forward(self, x):
            score = x.flatten(1) @ self.weight
            return torch.stack([100 - score, 0 * score], 1)

    x = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    weight = Linear.weight.numpy()
    outcome = APGD(norm="l1", eps=4, steps=100, loss="margin").run(Linear(), x, torch.zeros(4).long(), run=Run())
    gained = ((outcome.x_adv - x).flatten(1) @ Linear.weight).numpy()
    for image, gain in zip(x.flatten(1).numpy(), gained, strict=True):
        left, best = 4.0, 0.0
        for i in np.argsort(-abs(weight)):
            step = min(left, 1 - image[i] if weight[i] > 0 else image[i])
            left, best = left - step, best + step * abs(weight[i])
        assert gain == pytest.approx(best, rel=0.02)
