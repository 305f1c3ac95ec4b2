import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from holdfast.evasion.masking import masking_signs
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
        torch.manual_seed(0)
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


def raised(model, digits, n=64):
    x, y = digits[0][1000 : 1000 + n], digits[1][1000 : 1000 + n]
    signs = masking_signs(model, x, y, run=Run(), eps=0.15, steps=8, queries=150)
    assert all(sign.ok == (sign.value <= sign.limit) for sign in signs)
    assert len({sign.name for sign in signs}) == len(signs) == 9
    return {sign.name for sign in signs if not sign.ok}


def test_an_honest_model_raises_no_sign(trained, digits):
    assert raised(trained, digits) == set()


@pytest.mark.filterwarnings("ignore::holdfast.models.NonDeterministic")
@pytest.mark.parametrize(
    ("wrapper", "expected"),
    [
        (Detached, {"zero-gradient", "useless-gradient", "black-box-beats-white-box"}),
        (Quantised, {"zero-gradient", "useless-gradient", "black-box-beats-white-box"}),
        (Saturated, {"zero-gradient", "loss-matters"}),
        (Random, {"random-output"}),
        (Shattered, {"useless-gradient"}),
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
