import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.data.images import Images
from holdfast.errors import UserError
from holdfast.evasion import FGUAP, SGDUAP, UAP, DominantPatterns, Pattern, RandomSign
from holdfast.evasion import campaign as campaigning
from holdfast.evasion.dominant_patterns import _AGREEMENTS, _along, _pull
from holdfast.evasion.oracle import consult
from holdfast.evasion.pattern import Effect
from holdfast.evasion.universal import onto_ball
from holdfast.models import build_model
from holdfast.run import Run

EPS = 0.06
METHODS = [
    SGDUAP(eps=EPS, batch_size=32),
    UAP(eps=EPS, epochs=1, images=24, steps=3),
    FGUAP(eps=EPS),
    DominantPatterns(eps=EPS, epochs=2),
    RandomSign(eps=EPS),
]


class Linear(nn.Module):
    def __init__(self, classes=2, seed=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, 27, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.T


def images(n=60, size=12, seed=1, model=None):
    """Images away from the edges of the box, labelled by the model where there is one."""
    x = 0.2 + 0.6 * torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
    y = torch.zeros(n, dtype=torch.int64)
    if model is not None:
        with torch.no_grad():
            y = model.eval()(x).argmax(1)
    return Images(x=x, y=y, classes=("a", "b", "c", "d"))


def net():
    return build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=Run(seed=3))


each = pytest.mark.parametrize("attack", METHODS, ids=lambda a: a.id)


@each
@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.7)])
def test_one_pattern_in_the_ball_is_added_to_every_image(attack, norm, eps):
    model = net()
    split = images(model=model)
    attack = dataclasses.replace(attack, norm=norm, eps=eps)
    outcome = attack.run(model, split.x, split.y, run=Run())
    offset = outcome.x_adv - split.x
    assert torch.allclose(offset, offset[:1].expand_as(offset), atol=1e-6)
    size = offset[0].abs().max() if norm == "linf" else offset[0].norm()
    assert 0.3 * eps < size <= eps + 1e-6
    assert attack.joint


@each
def test_labels_are_not_read_and_the_order_of_the_images_does_not_matter(attack):
    model, split = net(), images()
    first = attack.fit(model, split, run=Run())
    relabelled = split.but(y=torch.arange(len(split)) % 4)
    assert torch.equal(attack.fit(model, relabelled, run=Run()).v, first.v)
    shuffled = split.select(torch.randperm(len(split), generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(attack.fit(model, shuffled, run=Run()).v, first.v, atol=1e-6)


@each
def test_a_radius_of_zero_fools_nobody(attack):
    pattern = dataclasses.replace(attack, eps=0).fit(net(), images(), run=Run())
    assert not pattern.v.any()
    assert pattern.fooling_rate(net(), images(), run=Run()) == 0


def test_the_reported_curve_and_the_pattern_belong_to_the_best_pass():
    model, split, other = net(), images(), images(seed=2)
    attack = SGDUAP(eps=0.1, epochs=4, batch_size=8)
    pattern = attack.fit(model, split, run=Run(), val=other)
    assert len(pattern.curves["fooling_rate"]) == 4
    assert max(pattern.curves["fooling_rate"]) == pytest.approx(pattern.fooling_rate(model, other, run=Run()))


def test_on_a_linear_model_gradient_ascent_finds_the_closed_form():
    model = Linear()
    split = images(size=3, model=model)
    split = split.select(split.y == 0)
    weight = model.weight.detach()
    pattern = SGDUAP(eps=0.05, epochs=3, batch_size=5).fit(model, split, run=Run())
    assert torch.allclose(pattern.v.flatten(), 0.05 * (weight[1] - weight[0]).sign())


def test_images_whose_loss_is_over_the_cap_pull_no_more():
    model = Linear()
    x = torch.full((1, 3, 3, 3), 0.5) + 0.2 * (model.weight[0] - model.weight[1]).detach().sign().view(1, 3, 3, 3)
    split = Images(x=x, y=torch.zeros(1, dtype=torch.int64), classes=("a", "b"))
    already = F.cross_entropy(model(x), torch.tensor([0])).item()
    assert SGDUAP(eps=0.05, cap=already / 2).fit(model, split, run=Run()).v.abs().max() == 0
    assert SGDUAP(eps=0.05, cap=9, epochs=10).fit(model, split, run=Run()).v.abs().max() == pytest.approx(0.05)


def test_a_visit_of_uap_takes_the_shortest_way_over_the_boundary():
    model = Linear()
    split = images(n=1, size=3, model=model)
    weight = model.weight.detach().double()
    normal = weight[1 - split.y[0]] - weight[split.y[0]]
    gap = -float(normal @ (split.x[0].double().flatten() - 0.5)) / normal.norm()
    pattern = UAP(eps=10, norm="l2", epochs=1).fit(model, split, run=Run())
    assert torch.allclose(pattern.v.flatten().double(), normal / normal.norm() * gap * 1.02, atol=2e-4)
    assert pattern.curves["fooling_rate"] == (1.0,)


def test_uap_visits_the_images_one_after_the_other():
    """Against a plain loop: looking ahead may save passes but must not change who is visited with which pattern."""
    model = Linear(classes=3)
    split = images(n=30, size=3, model=model)
    attack = UAP(eps=0.03, epochs=1, delta=0)
    got = attack.fit(model, split, run=Run()).v
    from holdfast.evasion.universal import Crowd

    with consult(model, split.x[:8], Run()) as oracle:
        crowd = Crowd(oracle=oracle, x=split.x, eps=0.03, norm="linf", run=Run().child("uap"))
        v = torch.zeros(3, 3, 3)
        for row in crowd.order(0):
            if model(split.x[row][None] + v).argmax() == split.y[row]:
                move = attack._least_move(crowd, row[None], v)
                v = v if move is None else onto_ball(v + move, 0.03, "linf")
    assert torch.allclose(got, v, atol=1e-6)
    assert v.abs().max() == pytest.approx(0.03)


def outputs_of(model, x, output="penultimate"):
    """Logits, or what the last linear layer reads."""
    model.eval()
    seen = []
    handle = model.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        logits = model(x)
    handle.remove()
    return logits if output == "logits" else seen[0]


def test_fg_uap_turns_the_features_away():
    model, split = net(), images(200)

    def cosine(pattern):
        clean, moved = outputs_of(model, split.x), outputs_of(model, split.x + pattern.v)
        return F.cosine_similarity(clean, moved).mean().item()

    pattern = FGUAP(eps=0.1, epochs=3).fit(model, split, run=Run())
    noise = RandomSign(eps=0.1).fit(model, split, run=Run())
    gains = pattern.curves["gain"]
    assert 1 - cosine(pattern) > 3 * (1 - cosine(noise))
    assert -1 < gains[0] < gains[-1]
    assert -gains[-1] == pytest.approx(cosine(pattern), abs=0.01)


@pytest.mark.parametrize("name", ["cos", "mse", "kl"])
def test_the_two_parts_of_the_dominant_gradient_add_up_to_that_of_the_whole_loss(name):
    agreement = _AGREEMENTS[name]
    model = net().eval().double()
    x = images(6).x.double()
    v = (0.05 * torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(0))).double().requires_grad_()
    alone, outputs = model(v[None]), model(x + v)
    whole = {
        "cos": lambda: F.cosine_similarity(alone, outputs).mean(),
        "mse": lambda: -F.mse_loss(alone.expand_as(outputs), outputs),
        "kl": lambda: -F.kl_div(outputs.log_softmax(1), alone.softmax(1).expand_as(outputs), reduction="batchmean"),
    }[name]()
    (expected,) = torch.autograd.grad(whole, v, retain_graph=True)
    pull = _pull(agreement, outputs.detach(), alone.detach())
    through_images = agreement(outputs, outputs, alone.detach().expand_as(outputs)).mean()
    through_pattern = _along(alone, alone, pull).sum()
    (got,) = torch.autograd.grad(through_images + through_pattern, v)
    assert torch.allclose(got, expected, atol=1e-10)


@pytest.mark.parametrize("output", ["logits", "penultimate"])
def test_dominant_patterns_make_the_network_see_the_pattern(output):
    model, split = net(), images(200)
    attack = DominantPatterns(eps=0.3, epochs=4, output=output)
    pattern = attack.fit(model, split, run=Run())
    noise = RandomSign(eps=0.3).fit(model, split, run=Run())

    def agreement(v):
        alone, moved = (outputs_of(model, x, output) for x in (v[None], split.x + v))
        return F.cosine_similarity(alone, moved).mean().item()

    assert agreement(pattern.v) > max(agreement(noise.v), 0.9)
    assert pattern.curves["gain"][-1] == pytest.approx(agreement(pattern.v), abs=0.02)


def test_a_target_is_where_the_images_are_led():
    model, split = net(), images(100)
    predicted = torch.bincount(model.eval()(split.x).argmax(1), minlength=4)
    target = int(predicted.argmin())
    for attack in (SGDUAP(eps=0.3), FGUAP(eps=0.3, target_weight=3.0), UAP(eps=0.3, epochs=2, images=40)):
        pattern = attack.fit(model, split, run=Run(), target=target)
        led = pattern.effect(model, split, run=Run())
        assert (led.attacked == target).float().mean() > 0.5, attack.id
    with pytest.raises(UserError, match=r"sgd-uap: target must lie in 0\.\.3, got 4"):
        SGDUAP().fit(model, split, run=Run(), target=4)


def test_what_an_effect_counts():
    clean = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    attacked = torch.tensor([1, 1, 1, 1, 2, 1, 2, 3])
    effect = Effect(
        clean=clean, attacked=attacked, y=torch.tensor([0, 1, 1, 1, 2, 2, 3, 3]), classes=5, alone=1, on_mean=1
    )
    assert effect.fooling_rate == 4 / 8
    assert effect.accuracy_drop == pytest.approx(7 / 8 - 5 / 8)
    assert effect.success == pytest.approx(3 / 7)
    assert effect.dominant(2) == [1, 2]
    assert effect.dominance(1) == 5 / 8
    assert effect.dominance(3) == 1
    assert effect.clean_share(1) == 2 / 8
    low, high = effect.interval
    assert low < 0.5 < high


def test_effects_are_measured_on_clipped_images():
    model = Linear()
    x = torch.zeros(4, 3, 3, 3)
    split = Images(x=x, y=torch.zeros(4, dtype=torch.int64), classes=("a", "b"))
    down = Pattern(v=torch.full((3, 3, 3), -0.5), eps=0.5, norm="linf")
    assert down.fooling_rate(model, split, run=Run()) == 0
    assert torch.equal(down.add_to(x), x)


def test_a_pattern_survives_being_written(tmp_path):
    pattern = SGDUAP(eps=0.05, epochs=1).fit(net(), images(), run=Run())
    pattern.save(tmp_path / "v.safetensors")
    again = Pattern.load(tmp_path / "v.safetensors")
    assert torch.equal(again.v, pattern.v)
    assert (again.eps, again.norm, again.attack, again.curves) == (
        pattern.eps,
        pattern.norm,
        "sgd-uap(eps=0.05, epochs=1)",
        pattern.curves,
    )
    (tmp_path / "text").write_text("nothing")
    for wrong in ("text", "missing"):
        with pytest.raises(UserError, match="is not a universal pattern"):
            Pattern.load(tmp_path / wrong)


def test_a_pattern_of_another_shape_is_refused():
    with pytest.raises(UserError, match=r"60 images of shape \(3, 12, 12\) cannot take a pattern of shape \(3, 8, 8\)"):
        Pattern(v=torch.zeros(3, 8, 8), eps=0.1, norm="linf").effect(net(), images(), run=Run())


def test_a_campaign_fits_one_pattern_to_the_whole_split(monkeypatch, tmp_path):
    monkeypatch.setattr(campaigning, "_PART", 8)
    model = net()
    split = images(30, model=model)
    attack = SGDUAP(eps=0.1)
    whole = attack.run(model, split.x, split.y, run=Run(out=tmp_path))
    result = campaigning.campaign(attack, model, split, run=Run(out=tmp_path))
    assert torch.equal(result.outcome.x_adv, whole.x_adv)
    again = campaigning.campaign(attack, model, split, run=Run(out=tmp_path))
    assert torch.equal(again.outcome.x_adv, whole.x_adv)
