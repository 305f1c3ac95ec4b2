import pytest
import torch
from torch import nn

from holdfast.errors import UserError
from holdfast.evasion import PGD, RND, OutNoise, Square
from holdfast.evasion.adaptive import Expectation, Informed, adaptive, bpda, draws_needed, informed, softened
from holdfast.models import build_model
from holdfast.run import Run

quiet = pytest.mark.filterwarnings("ignore::holdfast.models.NonDeterministic")


def quantise(x):
    return (x * 7).round() / 7


@pytest.fixture(scope="module")
def task():
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=Run(seed=3)).eval()
    x = torch.rand(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def test_bpda_computes_one_function_and_differentiates_another():
    x = torch.rand(5, 7).requires_grad_()
    layer = bpda(quantise, lambda x: x**2)
    value = layer(x)
    assert torch.equal(value, quantise(x))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.allclose(gradient, 2 * x)
    (identity,) = torch.autograd.grad(bpda(quantise)(x).sum(), x)
    assert torch.equal(identity, torch.ones_like(x))
    with torch.no_grad():
        assert torch.equal(layer(x), quantise(x))


def test_bpda_refuses_functions_of_different_shapes():
    with pytest.raises(UserError, match=r"same shape, got \(4, 3\) and \(4, 2\)"):
        bpda(lambda x: x, lambda x: x[:, :2])(torch.rand(4, 3).requires_grad_())


class Quantised(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(quantise(x))


def test_a_stand_in_finds_what_the_deployed_model_hides_and_the_deployed_model_judges(task):
    model, x, _ = task
    deployed = Quantised(model)
    y = deployed(x).argmax(1)
    attack = PGD(eps=0.1, steps=6, random_start=False)
    assert not attack.run(deployed, x, y, run=Run()).success.any()
    outcome = adaptive(attack, deployed, nn.Sequential(bpda(quantise), model))(x, y, run=Run())
    assert outcome.success.float().mean() > 0.5
    assert torch.equal(outcome.success, deployed(outcome.x_adv).argmax(1) != y)


def test_a_bad_stand_in_costs_successes_and_never_invents_them(task):
    model, x, y = task
    opposite = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).eval()
    outcome = PGD(eps=0.05, steps=4).run(Informed(model, opposite), x, y, run=Run())
    assert torch.equal(outcome.success, model(outcome.x_adv).argmax(1) != y)


def test_a_model_without_a_guard_needs_a_stand_in(task):
    with pytest.raises(UserError, match="ConvNet has no method adaptive"):
        informed(task[0])


def test_the_mean_over_draws_is_steadier_and_its_gradient_is_the_mean(task):
    model, x, _ = task
    noisy = RND(sigma=0.3)(model)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        spread = [torch.stack([net(x) for _ in range(6)]).std(0).mean() for net in (noisy, Expectation(noisy, 25))]
        assert 3 < spread[0] / spread[1] < 8  # the root of 25
        torch.default_generator.manual_seed(1)
        mean = Expectation(noisy, 3)(x)
        torch.default_generator.manual_seed(1)
        assert torch.allclose(mean, sum(noisy(x) for _ in range(3)) / 3)
    with pytest.raises(UserError, match="draws"):
        Expectation(noisy, 0)


def test_more_noise_needs_more_draws(task):
    model, x, y = task
    needed = [draws_needed(RND(sigma=sigma)(model), x[:8], y[:8], run=Run(), most=160) for sigma in (0.001, 0.6)]
    assert needed[0] == 20
    assert needed[1] > 20


@quiet
def test_noise_guards_are_random_and_an_attacker_who_averages_sees_through_them(task):
    model, x, y = task
    for guard in (RND(sigma=0.2), OutNoise(sigma=1)):
        guarded = guard(model)
        assert not torch.equal(guarded(x), guarded(x))
        assert str(guard) in repr(guarded)
    assert torch.equal(RND(sigma=0)(model)(x), model(x))
    assert torch.equal(OutNoise(sigma=0)(model)(x), model(x))
    square, guarded = Square(eps=0.05, queries=30), OutNoise(sigma=0.3)(model)
    found, again = (square.run(guarded, x, y, run=Run()) for _ in range(2))
    assert torch.equal(found.x_adv, again.x_adv)  # noise comes from the run
    knowing = square.run(informed(guarded), x, y, run=Run())
    behind = [int((model(outcome.x_adv).argmax(1) != y).sum()) for outcome in (found, knowing)]
    assert behind[1] > behind[0]


def test_softened_logits_keep_labels(task):
    model, x, y = task
    assert torch.allclose(softened(model, 4)(x) * 4, model(x), atol=1e-6)
    assert torch.equal(softened(model, 4)(x).argmax(1), y)
    with pytest.raises(UserError, match="above 0"):
        softened(model, 0)
