import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from holdfast.evasion import AAA
from holdfast.evasion.adaptive import bpda
from holdfast.evasion.masking import masking_signs
from holdfast.evasion.masking.gradients import slope_error
from holdfast.evasion.masking.outputs import gradient_calls
from holdfast.evasion.masking.path import unfinished
from holdfast.evasion.oracle import consult
from holdfast.run import Run


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    return x, torch.tensor(data.target)


@pytest.fixture(scope="module")
def trained(digits):
    x, y = digits
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(144, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(60):
            rows = torch.randint(1000, (128,))
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


class Detached(Wrapped):
    def forward(self, x):
        return self.model(x.detach())


class Saturated(Wrapped):
    def forward(self, x):
        return self.model(x) * 1000


class Quantised(Wrapped):
    """Rounds the input to eight levels, which has no gradient."""

    def forward(self, x):
        return self.model((x * 7).round() / 7)


class Random(Wrapped):
    def forward(self, x):
        return self.model(x + 0.2 * torch.randn_like(x))


class Shattered(Wrapped):
    """A small ripple on the logits whose gradient is far larger than that of the rest."""

    def forward(self, x):
        generator = torch.Generator().manual_seed(0)
        mixing = torch.randn(64, 10, generator=generator) * 0.02
        return self.model(x) + (x.flatten(1) * 1e5).sin() @ mixing


def raised(model, digits, n=48):
    x, y = digits[0][1000 : 1000 + n], digits[1][1000 : 1000 + n]
    signs = masking_signs(model, x, y, run=Run(), eps=0.15, steps=8, queries=100)
    assert all(sign.ok == (sign.value <= sign.limit) for sign in signs)
    assert len({sign.name for sign in signs}) == len(signs) == 20
    return {sign.name for sign in signs if not sign.ok}


def test_an_honest_model_raises_no_sign(trained, digits):
    assert raised(trained, digits) == set()


@pytest.mark.filterwarnings("ignore::holdfast.models.NonDeterministic")
@pytest.mark.parametrize(
    ("wrapper", "expected"),
    [
        (Detached, {"zero-gradient", "cut-gradient", "useless-gradient", "black-box-beats-white-box"}),
        (Quantised, {"zero-gradient", "cut-gradient", "useless-gradient", "black-box-beats-white-box"}),
        (Saturated, {"zero-gradient", "saturated-softmax", "loss-matters"}),
        (Random, {"random-output"}),
        (Shattered, {"wrong-slope"}),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_masked_gradients_are_seen(trained, digits, wrapper, expected):
    assert expected <= raised(wrapper(trained), digits)


def test_a_softmax_inside_the_model_is_seen_and_does_not_hide_errors(trained, digits):
    assert raised(nn.Sequential(trained, nn.Softmax(1)), digits) == {"probability-output"}


def test_the_model_is_left_as_it_was(trained, digits):
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    raised(trained.train(), digits, n=8)
    assert trained.training
    trained.eval()
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert all(p.requires_grad for p in trained.parameters())


def test_the_gradient_of_a_smooth_network_is_the_slope_of_its_loss():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        smooth = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5)).eval()
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 5
    with consult(smooth, x, Run()) as oracle:
        assert slope_error(oracle, x, y, Run()) < 1e-4


def test_a_gradient_that_is_not_the_slope_is_seen():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        smooth = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5))
    turned = nn.Sequential(bpda(lambda x: x, lambda x: x.flip(-1)), smooth).eval()
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 5
    with consult(turned, x, Run()) as oracle:
        assert slope_error(oracle, x, y, Run()) > 0.5


def test_an_attack_that_was_still_falling_is_unfinished():
    steps = torch.arange(40.0)
    paths = torch.stack([
        (-steps / 5).exp(),  # done long ago
        -steps,  # falls to the last
        torch.zeros(40),  # never moved
        torch.where(steps < 35, 1.0, 0.0),  # found something at the end
        torch.where(steps == 20, -1.0, steps / 40),  # best in the middle, worse since
        -3 * steps * 1000 + 7,  # scale and offset do not matter
    ])  # fmt: skip
    assert unfinished(paths).tolist() == [False, True, False, True, False, True]


def test_a_purifier_is_caught_taking_gradients():
    class Purifying(nn.Module):
        def forward(self, x):
            with torch.enable_grad():
                z = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(z.square().sum(), z)
            return (x - 0.1 * slope).flatten(1)[:, :4]

    x = torch.rand(4, 1, 4, 4)
    before = torch.autograd.grad
    with consult(Purifying(), x, Run()) as oracle:
        assert gradient_calls(oracle, x) == 1
    with consult(nn.Flatten(), x, Run()) as oracle:
        assert gradient_calls(oracle, x) == 0
    assert torch.autograd.grad is before


def test_a_guard_that_answers_in_the_models_place_is_seen(trained, digits):
    assert {"zero-gradient", "cut-gradient", "unbounded-attack-fails"} <= raised(
        AAA(iterations=5)(trained), digits, n=24
    )


def test_every_sign_says_what_to_try(trained, digits):
    signs = masking_signs(trained, digits[0][1000:1008], digits[1][1000:1008], run=Run(), eps=0.1, steps=2, queries=5)
    assert all(sign.suggests and sign.explanation for sign in signs)
    assert {sign.result for sign in signs} <= {"pass", "warn", "fail"}
