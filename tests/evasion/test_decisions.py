"""The attacks that see predicted classes only, and what they share."""

import pytest
import torch
from torch import nn

from holdfast.evasion import Boundary, DeepFool, HopSkipJump
from holdfast.evasion.balls import distance
from holdfast.evasion.boundary import Outcomes, propose
from holdfast.evasion.decisions import Decisions, normal_offsets, towards, uniform_offsets
from holdfast.evasion.oracle import consult
from holdfast.models import build_model
from holdfast.run import Run, Ticker


class Linear(nn.Module):
    def __init__(self, pixels=64):
        super().__init__()
        weight = torch.randn(2, pixels, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return (x - 0.5).flatten(1) @ self.weight.T


class Watched(nn.Module):
    """Counts the rows it is shown; copies share the record."""

    def __init__(self, model, record):
        super().__init__()
        self.model, self.record = model, record

    def __deepcopy__(self, memo):
        return Watched(self.model, self.record)

    def forward(self, x):
        self.record.append(len(x))
        return self.model(x)


def linear(n=12):
    model = Linear()
    x = 0.5 + 0.3 * (torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5)
    return model, x, model(x).argmax(1)


def exact(model, x, y):
    normal = (model.weight[1 - y] - model.weight[y]).detach()
    return -(normal * (x - 0.5).flatten(1)).sum(1) / normal.norm(dim=1)


@pytest.fixture(scope="module")
def net():
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=Run(seed=3)).eval()
    x = torch.rand(10, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


LABEL_ONLY = [Boundary, HopSkipJump, lambda **more: HopSkipJump(norm="linf", **more)]
each = pytest.mark.parametrize("attack", LABEL_ONLY, ids=["boundary", "hopskipjump", "hopskipjump-linf"])


@each
def test_nothing_but_the_predicted_class_is_used(attack, net):
    model, x, y = net

    class Labels(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return 7.0 * torch.nn.functional.one_hot(self.model(x).argmax(1), 4)

    bare, blind = (attack(queries=120).run(m, x, y, run=Run()) for m in (model, Labels()))
    assert torch.equal(bare.x_adv, blind.x_adv)
    assert torch.equal(bare.queries, blind.queries)


@each
def test_the_counter_equals_the_rows_the_model_saw_and_keeps_the_budget(attack, net):
    model, x, y = net
    seen = {}
    for queries in (60, 150):
        record = []
        outcome = attack(queries=queries).run(Watched(model, record), x, y, run=Run())
        seen[queries] = sum(record), int(outcome.queries.sum())
        assert (outcome.queries <= queries).all()
        assert not outcome.gradients.any()
    assert seen[150][0] - seen[60][0] == seen[150][1] - seen[60][1]
    assert seen[150][1] > 10 * 110


@each
def test_more_queries_never_end_farther_away(attack, net):
    model, x, y = net
    found = [attack(queries=q).run(model, x, y, run=Run()).distance for q in (30, 200, 600)]
    assert found[2].median() < 0.7 * found[0].median()
    if attack is Boundary:  # the longer walk begins with the shorter one
        assert (found[1] <= found[0]).all()
        assert (found[2] <= found[1]).all()


def test_on_a_linear_model_they_come_near_the_exact_distance():
    model, x, y = linear()
    best = exact(model, x, y)
    hopped = HopSkipJump(queries=2000).run(model, x, y, run=Run()).distance
    walked = Boundary(queries=2000).run(model, x, y, run=Run()).distance
    assert (hopped >= 0.999 * best).all()
    assert (hopped / best).median() < 1.1
    assert (walked / best).median() < 1.5


def test_with_two_thousand_labels_hopskipjump_comes_near_what_gradients_find(net):
    model, x, y = net
    gradients = DeepFool().run(model, x, y, run=Run()).distance.median()
    assert HopSkipJump(queries=2000).run(model, x, y, run=Run()).distance.median() < 4 * gradients


@pytest.mark.parametrize(("norm", "least"), [("l2", 0.5), ("linf", 0.5)])
def test_the_estimated_direction_is_that_of_the_boundarys_normal(norm, least):
    model, x, y = linear()
    attack = HopSkipJump(norm=norm)
    with consult(model, x, Run()) as oracle:
        task = attack._task(oracle, x, y, y, "any", 7, Ticker())
        decisions, rows = Decisions(task, 10_000), torch.arange(len(x))
        normal = (model.weight[1 - y] - model.weight[y]).detach()
        # Just beyond the boundary, where about half of the neighbours are adversarial.
        on = x + ((exact(model, x, y) + 1e-5)[:, None] * normal / normal.norm(dim=1, keepdim=True)).view(x.shape)
        count = torch.full((len(x),), 1000)
        found = attack.normal(decisions, on, rows, torch.full((len(x),), 0.05), count, 1)
    cosine = torch.cosine_similarity(found.flatten(1), normal)
    assert cosine.min() > least


def test_a_target_that_fine_noise_never_hits_is_found_by_coarse_noise():
    class Brightness(nn.Module):
        """Dark, medium or bright, by the mean."""

        def forward(self, x):
            mean = x.mean((1, 2, 3))
            return -torch.stack([mean - 0.1, mean - 0.5, mean - 0.9], 1).abs()

    x = torch.full((4, 3, 16, 16), 0.5) + 0.01 * torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    y = torch.ones(4, dtype=torch.int64)
    target = torch.tensor([0, 2, 0, 2])
    outcome = HopSkipJump(queries=400).run(Brightness(), x, y, run=Run(), target=target)
    assert outcome.success.all()
    assert torch.equal(outcome.predictions, target)


def test_a_sample_without_a_start_costs_its_draws_and_fails():
    class Stubborn(nn.Module):
        def forward(self, x):
            return torch.stack([torch.ones(len(x)), torch.zeros(len(x))], 1) + 0 * x.mean()

    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    outcome = HopSkipJump(queries=40).run(Stubborn(), x, torch.zeros(3, dtype=torch.int64), run=Run())
    assert not outcome.success.any()
    assert (outcome.queries == 40).all()
    assert torch.equal(outcome.x_adv, x)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_way_back_ends_on_the_adversarial_side_within_its_tolerance(norm):
    model, x, y = linear()
    attack = HopSkipJump(norm=norm)
    with consult(model, x, Run()) as oracle:
        task = attack._task(oracle, x, y, y, "any", 7, Ticker())
        decisions = Decisions(task, 10_000)
        points, rows = decisions.start()
        back = decisions.to_boundary(points, rows, 1e-3)
        assert len(rows) == len(x)
        assert (model(back).argmax(1) != y).all()
        share = distance(back, x, norm) / distance(points, x, norm)
        assert torch.allclose(back, towards(x, points, share, norm), atol=1e-5)
        assert (model(towards(x, points, share - 1.1e-3, norm)).argmax(1) == y).all()
        assert (task.queries >= 11).all()


def test_a_proposal_keeps_the_distance_sideways_and_then_comes_nearer():
    x0 = torch.full((5, 3, 8, 8), 0.5)
    generator = torch.Generator().manual_seed(0)
    x = x0 + 0.05 * torch.randn(5, 3, 8, 8, generator=generator)
    noise = torch.randn(5, 3, 8, 8, generator=generator)
    around, nearer = propose(x, x0, noise, torch.full((5,), 0.1), torch.full((5,), 0.02))

    def length(z):
        return (z - x0).flatten(1).norm(dim=1)

    assert torch.allclose(length(around), length(x), rtol=1e-4)
    assert torch.allclose((around - x).flatten(1).norm(dim=1) / length(x), torch.tensor(0.1), rtol=0.01)
    assert torch.allclose(length(nearer), 0.98 * length(x), rtol=1e-4)


def test_step_lengths_follow_the_latest_outcomes_of_each_sample():
    outcomes, rows = Outcomes(3, 4, torch.device("cpu")), torch.arange(3)
    for _ in range(3):
        outcomes.note(torch.tensor([True, False, True]), rows)
        assert (outcomes.change(0.2, 0.5, 2.0) == 1).all(), "too few to tell"
    outcomes.note(torch.tensor([True, False, False]), rows)
    assert outcomes.change(0.2, 0.8, 2.0).tolist() == [2.0, 0.5, 1.0]
    # The first two begin anew; the third forgets its oldest.
    outcomes.note(torch.tensor([True, True, True]), rows)
    assert outcomes.change(0.2, 0.5, 2.0).tolist() == [1.0, 1.0, 2.0]


def test_offsets_are_normal_or_uniform_and_belong_to_their_key():
    like = torch.zeros(1, 3, 32, 32)
    keys = torch.arange(20)
    normal, uniform = normal_offsets(5, keys, like), uniform_offsets(5, keys, like)
    assert torch.equal(normal[3:4], normal_offsets(5, keys[3:4], like))
    assert normal.mean().abs() < 0.02
    assert abs(normal.std() - 1) < 0.02
    assert abs((normal**4).mean() - 3) < 0.15
    assert abs(uniform.std() - 3**-0.5) < 0.01
    assert uniform.abs().max() < 1
    crossed = normal.flatten(1) @ normal.flatten(1).T / 3072 - torch.eye(20)
    assert crossed.abs().max() < 0.12
    assert abs(float((normal[:, :, 1:] * normal[:, :, :-1]).mean())) < 0.02
