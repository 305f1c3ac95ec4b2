import pytest
import torch
from torch import nn

from holdfast.evasion import QueryNet, Square
from holdfast.evasion.querynet import Siege, grid_ball, mode_of, reweighted
from holdfast.models import build_model
from holdfast.run import Run


class Watched(nn.Module):
    """Keeps what it is shown; copies share the record."""

    def __init__(self, model, record):
        super().__init__()
        self.model, self.record = model, record

    def __deepcopy__(self, memo):
        return Watched(self.model, self.record)

    def forward(self, x):
        self.record.append(x.detach().clone())
        return self.model(x)


@pytest.fixture(scope="module")
def setting():
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=Run(seed=3)).eval().double()
    model.forward = lambda x, forward=model.forward: forward(x.double())
    x = torch.rand(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    x = (x * 255).round() / 255
    with torch.no_grad():
        return model, x, model(x).argmax(1)


SMALL = {"first_batches": 20, "batches": 3, "batch_size": 32, "trials": 5}


def test_every_query_is_an_8_bit_image_within_the_ball(setting):
    model, x, y = setting
    record = []
    eps = 3 / 255
    QueryNet(eps=eps, queries=12, **SMALL).run(Watched(model, record), x, y, run=Run(batch_size=64))
    queried = [points for points in record if len(points) > 8]
    assert len(queried) > 10
    for points in queried:
        levels = points.double() * 255
        assert (levels - levels.round()).abs().max() < 1e-4
    first = next(points for points in queried if len(points) == len(x) and not torch.equal(points, x))
    assert ((first - x).abs() <= eps + 1e-6).all()
    # The others hold some of the images only: each must lie in the ball of one.
    for points in queried:
        far = (points[:, None] - x[None]).abs().flatten(2).amax(2)
        assert (far.amin(1) <= eps + 1e-6).all()


def test_without_surrogates_and_filter_it_is_square(setting):
    """Its own image takes the first query, so Square has one query less."""
    model, x, y = setting
    eps = 12 / 255
    square = Square(eps=eps, queries=30, p_init=0.05, rescale=True).run(model, x, y, run=Run())
    outcome = QueryNet(eps=eps, queries=31, surrogates=0, trials=1).run(model, x, y, run=Run())
    assert torch.allclose(outcome.x_adv, square.x_adv, atol=1e-6)
    assert torch.equal(outcome.success, square.success)
    assert torch.equal(outcome.queries, square.queries + 1)
    assert 3 < square.success.sum() < 40


def test_without_surrogates_it_is_square_plus(setting, monkeypatch):
    """The filter is the only difference: where it finds everything promising, it is Square again."""
    model, x, y = setting
    attack = QueryNet(eps=3 / 255, queries=16, surrogates=0, trials=20)
    filtered = attack.run(model, x, y, run=Run())
    plain = QueryNet(eps=3 / 255, queries=16, surrogates=0, trials=1).run(model, x, y, run=Run())
    assert not torch.equal(filtered.x_adv, plain.x_adv)

    def everything(self, rows, points, ambition):
        return torch.ones(len(rows), dtype=torch.bool)

    monkeypatch.setattr("holdfast.evasion.querynet.Answers.promising", everything)
    assert torch.equal(attack.run(model, x, y, run=Run()).x_adv, plain.x_adv)


def test_surrogates_save_queries(setting):
    model, x, y = setting
    eps = 12 / 255
    square = Square(eps=eps, queries=14, p_init=0.05, rescale=True).run(model, x, y, run=Run())
    both = QueryNet(eps=eps, queries=15, first_batches=80, batches=10, batch_size=32).run(model, x, y, run=Run())
    assert both.success.sum() >= square.success.sum() + 6


def test_when_the_surrogates_have_lost_all_weight_square_works_alone(setting, monkeypatch):
    model, x, y = setting
    fits = []
    monkeypatch.setattr("holdfast.evasion.querynet.Surrogate.fit", lambda self, *a: fits.append(a))
    monkeypatch.setattr("holdfast.evasion.querynet.reweighted", lambda weights, *_: [0.1, 0.1, 0.2, 0.3])
    QueryNet(eps=1 / 255, queries=10, **SMALL).run(model, x, y, run=Run())
    assert [count for count, *_ in fits] == [20, 20], "two surrogates were trained once, before their first proposal"


@pytest.mark.parametrize(
    ("weights", "mode"),
    [
        ([1.0, 1.0, 0.0, 0.0], "surrogates"),  # the start
        ([0.4, 0.0, 0.3, 0.0], "surrogates"),  # one of them suffices
        ([0.3, 0.2, 0.4, 0.0], "square+"),
        ([0.4, 0.2, 0.4, 0.0], "square+"),  # surrogates must be better, for they cost training
        ([0.0, 0.0, 0.0, 0.0], "square+"),  # too few images left to tell
        ([0.3, 0.2, 0.4, 0.5], "square"),
        ([0.3, 0.2, 0.5, 0.5], "square+"),
        ([0.6, 0.2, 0.4, 0.5], "surrogates"),  # they come back when Square+ gets worse
        ([0.5, 0.2, 0.4, 0.5], "square"),
        ([0.0, 0.0], "square+"),  # no surrogates at all
    ],
)
def test_the_heaviest_proposes(weights, mode):
    assert mode_of(weights) == mode


def test_weights_are_the_shares_of_chosen_proposals_that_helped():
    weights = [0.9, 0.8, 0.7, 0.6]
    chosen = torch.tensor([0] * 4 + [1] * 2 + [2] * 3)
    improved = torch.tensor([1, 1, 1, 0, 1, 1, 0, 0, 0]).bool()
    assert reweighted(weights, [0, 1, 2], chosen, improved, 3) == [0.75, 0.0, 0.0, 0.6]
    assert reweighted(weights, [0, 1, 2], chosen, improved, 2) == [0.75, 1.0, 0.0, 0.6]
    # Of Square+ and Square, the first and the second in their round.
    assert reweighted(weights, [2, 3], chosen.clamp_max(1), improved, 1) == [0.9, 0.8, 0.75, 0.4]


def test_candidates_by_mode(setting):
    model, x, y = setting
    asked = []

    class Spy(Siege):
        def _vote(self, rows, proposals):
            asked.append(len(proposals))
            return super()._vote(rows, proposals)

    import holdfast.evasion.querynet as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Siege", Spy)
        modes = iter([[0.1, 0.1, 0.2, 0.0], [0.1, 0.1, 0.2, 0.3]])
        patch.setattr(module, "reweighted", lambda weights, *_: next(modes, weights))
        QueryNet(eps=1 / 255, queries=6, **SMALL).run(model, x, y, run=Run())
    # After the stripes: two surrogates and Square+; Square+ and Square; Square; Square.
    assert asked == [3, 2, 1, 1]


def test_the_grid_ball_holds_the_bytes_within_reach():
    x = torch.tensor([0.0, 5 / 255, 1.0, 0.5, 250 / 255]).view(1, 1, 1, 5)
    low, high = grid_ball(x, 8 / 255)
    assert torch.allclose(low * 255, torch.tensor([0.0, 0, 247, 120, 242]), atol=1e-4)  # 0.5 is level 127.5
    assert torch.allclose(high * 255, torch.tensor([8.0, 13, 255, 135, 255]), atol=1e-4)
    for tiny in (0.0, 0.3 / 255):
        low, high = grid_ball(x, tiny)
        assert torch.equal(low, x)
        assert torch.equal(high, x)
