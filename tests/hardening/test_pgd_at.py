import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast import catalog
from holdfast.data import load_data
from holdfast.errors import UserError
from holdfast.evasion.ascend import ascend
from holdfast.hardening.pgd_at import PGDAT
from holdfast.methods import Objective
from holdfast.models import build_model, frozen, weights_hash
from holdfast.run import Run
from holdfast.training import CrossEntropy, Step, fit


def net():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(384, 4)
    )
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.2)
    model[1].running_mean += 0.3
    return model


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(1)
    return torch.rand(10, 1, 8, 8, generator=rng), torch.randint(0, 4, (10,), generator=rng)


def step_of(model, **place):
    return Step(run=Run(seed=2), model=model, **place)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_examples_stay_in_ball_and_box_and_raise_the_loss(batch, norm, mode):
    x, y = batch
    model = net()
    eps = 0.1 if norm == "linf" else 0.8
    adversarial = PGDAT(eps=eps, step=eps / 2, steps=3, norm=norm, attack_mode=mode)
    x_adv = adversarial.perturb(model, x, y, step_of(model))
    distance = (x_adv - x).flatten(1)
    assert (distance.abs().amax(1) if norm == "linf" else distance.norm(dim=1)).max() <= eps + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert not x_adv.requires_grad
    model.eval()
    assert F.cross_entropy(model(x_adv), y) > F.cross_entropy(model(x), y) + 0.05


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_attacking_leaves_the_model_bit_for_bit_as_it_was(batch, mode):
    model = net()
    model[3].eval()  # one module in another mode than the rest
    model(batch[0]).sum().backward()
    before, modes = weights_hash(model), [m.training for m in model.modules()]
    gradients = [p.grad.clone() for p in model.parameters()]
    PGDAT(steps=2, attack_mode=mode).perturb(model, *batch, step_of(model))
    assert weights_hash(model) == before
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(p.requires_grad for p in model.parameters())


def test_modes_are_restored_after_an_error(batch):
    model = net()
    with pytest.raises(RuntimeError):
        PGDAT().perturb(model, batch[0][:, :, :5], batch[1], step_of(model))
    assert all(m.training for m in model.modules())


def test_the_attack_sees_the_mode_it_was_told(batch):
    model, seen = net(), []
    model[1].register_forward_hook(lambda module, args, out: seen.append(module.training))
    for mode in ("eval", "train"):
        PGDAT(steps=2, attack_mode=mode)(model, *batch, step_of(model))
    assert seen == [False, False, True, True, True, True]


def test_no_radius_is_plain_cross_entropy(batch):
    model = net()
    model[3].p = 0.0
    expected = CrossEntropy()(copy.deepcopy(model), *batch, step_of(model))
    assert PGDAT(eps=0, steps=2)(model, *batch, step_of(model)).item() == expected.item()


def test_one_full_step_reaches_the_corners_that_fgsm_reaches(batch):
    # Whatever the start, a step of 2 eps crosses the ball and is clamped to its far side.
    x, y = batch
    model = net().eval()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    x_adv = PGDAT(eps=0.05, step=0.1, steps=1).perturb(linear, x, y, step_of(linear))
    start = ascend(linear, x, y, eps=0.05, step=0, steps=0, generator=step_of(linear).rng("pgd-at")).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(linear(start), y), start)
    torch.testing.assert_close(x_adv, (x + 0.05 * gradient.sign()).clamp(0, 1))
    assert not model.training


def test_the_mixed_loss_weighs_clean_and_adversarial(batch):
    model = net()
    model[3].p = 0.0

    def value(**changes):
        return PGDAT(steps=1, **changes)(copy.deepcopy(model), *batch, step_of(None)).item()

    clean = CrossEntropy()(copy.deepcopy(model), *batch, step_of(None)).item()
    assert value(adversarial=0.25) == pytest.approx(0.75 * clean + 0.25 * value(), rel=1e-5)


def test_examples_are_the_step_s_own_and_can_be_made_again(batch):
    model = net()
    method = PGDAT(steps=1)
    first, again, next_ = (method.perturb(model, *batch, step_of(model, index=i)) for i in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_)


def test_it_buys_robustness_on_real_digits():
    digits = load_data("digits")
    attack = {"eps": 0.2, "step": 0.05, "steps": 10, "start": "centre"}

    def robust(objective):
        run = Run(seed=1)
        model = build_model("convnet(width=8)", num_classes=10, image_shape=(1, 8, 8), run=run)
        fit(model, digits.train, epochs=8, batch_size=64, objective=objective, optimizer="sgd(lr=0.05)", run=run)
        with frozen(model):
            x = ascend(model, digits.test.x, digits.test.y, **attack)
            return (model(x).argmax(1) == digits.test.y).float().mean().item()

    assert robust("pgd-at(eps=0.2, step=0.15, steps=2)") > robust("cross-entropy") + 0.15


def test_it_is_named_by_specs_with_fractions():
    assert catalog.build("pgd-at(eps=4/255, steps=2)", kind=Objective) == PGDAT(eps=4 / 255, steps=2)
    with pytest.raises(UserError, match="pgd-at: steps must be a whole number of at least 0, got -1"):
        catalog.build("pgd-at(steps=-1)")


def test_an_eps_in_bytes_is_refused_with_the_fraction_that_was_meant():
    with pytest.raises(UserError, match=r"pgd-at: eps must be a number in \[0, 1\] for norm 'linf', got 8. .*8/255"):
        catalog.build("pgd-at(eps=8)")
    assert catalog.build("pgd-at(eps=1.5, norm=l2)").eps == 1.5
