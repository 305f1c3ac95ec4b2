import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.evasion import ascend
from holdfast.evasion.ascend import kl_from


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.fixture
def x():
    return torch.rand(8, 3, 3, 3, generator=torch.Generator().manual_seed(1))


Y = torch.arange(8) % 4


def test_one_step_from_the_centre_is_fgsm(model, x):
    at = x.clone().requires_grad_()
    F.cross_entropy(model(at), Y).backward()
    expected = (x + 0.1 * at.grad.sign()).clamp(0, 1)
    assert torch.equal(ascend(model, x, Y, eps=0.1, step=0.1, steps=1, start="centre"), expected)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_the_loss_grows_and_the_ball_is_kept(model, x, norm, eps, loss):
    x_adv = ascend(
        model, x, Y, eps=eps, step=eps / 3, steps=5, norm=norm, loss=loss, generator=torch.Generator().manual_seed(0)
    )
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    offset = (x_adv - x).flatten(1)
    assert (offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)).max() <= eps + 1e-6
    assert F.cross_entropy(model(x_adv), Y) > F.cross_entropy(model(x), Y) + 0.05


def test_gradients_modes_and_input_are_left_alone(model, x):
    model.train()
    model[1].weight.grad = torch.ones_like(model[1].weight)
    before = x.clone()
    with torch.no_grad():
        x_adv = ascend(model, x, Y, eps=0.1, step=0.05, steps=3, generator=torch.Generator())
    assert torch.equal(x, before)
    assert (model[1].weight.grad == 1).all()
    assert model[3].weight.grad is None
    assert model.training
    assert not x_adv.requires_grad


def test_the_generator_decides_the_start(model, x):
    def start(seed):
        return ascend(model, x, Y, eps=0.1, step=0.05, steps=0, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))
    with pytest.raises(TypeError, match="needs a generator"):
        ascend(model, x, Y, eps=0.1, step=0.05, steps=1)


def test_a_given_start_is_projected_and_not_written_to(model, x):
    start = x + 0.5
    kept = start.clone()
    x_adv = ascend(model, x, Y, eps=0.1, step=0.05, steps=0, start=start)
    assert torch.equal(x_adv, (x + 0.1).clamp(0, 1))
    assert torch.equal(start, kept)


def test_the_divergence_from_the_clean_output_can_be_climbed(model, x):
    clean = model(x)
    loss = kl_from(clean)
    x_adv = ascend(model, x, Y, eps=0.1, step=0.05, steps=4, loss=loss, generator=torch.Generator().manual_seed(0))
    expected = F.kl_div(model(x_adv).log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    assert torch.allclose(loss(model(x_adv), Y), expected, atol=1e-6)
    assert (loss(model(x_adv), Y) > loss(clean, Y)).all()
    assert loss(clean, Y).abs().max() < 1e-6
