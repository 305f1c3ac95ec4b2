import pytest
import torch
from torch import nn

from holdfast.evasion import CW
from holdfast.models import build_model
from holdfast.run import Run


class Linear(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, 27, generator=torch.Generator().manual_seed(0)))

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


def linear(n=20, classes=2):
    model = Linear(classes)
    x = 0.5 + 0.2 * torch.rand(n, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    return model, x, model(x).argmax(1)


def small_net(n=16):
    run = Run(seed=3)
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=run).eval()
    x = torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def lead(outcome, y):
    """By how much the best wrong logit is ahead."""
    return outcome.logits.scatter(1, y[:, None], -torch.inf).amax(1) - outcome.logits.gather(1, y[:, None]).squeeze(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_on_a_linear_model_it_comes_within_three_per_cent_of_the_exact_distance(norm):
    model, x, y = linear()
    weight = model.weight.detach().double()
    normal = weight[1 - y] - weight[y]
    exact = -(normal * (x - 0.5).flatten(1)).sum(1) / torch.linalg.vector_norm(
        normal, 1 if norm == "linf" else 2, dim=1
    )
    outcome = CW(norm=norm).run(model, x, y, run=Run())
    assert outcome.success.all()
    ratio = outcome.distance / exact
    assert ratio.min() > 0.999
    assert ratio.median() < 1.02
    assert ratio.max() < 1.03


def test_pixels_at_the_edge_of_the_box_move():
    """All pixels are 0 or 1, and the way to the boundary leads inwards."""
    model = Linear(2)
    with torch.no_grad():
        normal = model.weight[1] - model.weight[0]
        x = (normal < 0).float().view(1, 3, 3, 3)
    y = model(x).argmax(1)
    assert y == 0
    exact = -(normal * (x - 0.5).flatten(1)).sum(1) / normal.norm()
    outcome = CW().run(model, x, y, run=Run())
    assert outcome.success.all()
    assert (outcome.distance / exact).item() < 1.03


def test_confidence_is_a_lead_of_the_wrong_logit_and_costs_distance():
    model, x, y = small_net(8)
    plain, sure = (CW(confidence=k, binary_steps=5).run(model, x, y, run=Run()) for k in (0.0, 0.5))
    assert plain.success.all()
    assert sure.success.all()
    assert (lead(sure, y) >= 0.5 - 1e-4).all()
    assert (lead(plain, y) < 0.1).any()
    assert (sure.distance > plain.distance).all()


def test_a_confidence_out_of_reach_is_no_success_of_the_search():
    model, x, y = linear()
    outcome = CW(confidence=1e4, binary_steps=2, steps=10).run(model, x, y, run=Run())
    assert torch.equal(outcome.x_adv, x)
    assert not outcome.success.any()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_with_a_radius_a_sample_is_left_alone_once_inside(norm):
    model, x, y = small_net()
    free = CW(norm=norm, binary_steps=4, steps=50).run(model, x, y, run=Run())
    eps = float(free.distance.median())
    bound = CW(norm=norm, binary_steps=4, steps=50, eps=eps).run(model, x, y, run=Run())
    assert torch.equal(bound.success, free.distance <= eps + 1e-6)
    assert (bound.gradients[bound.success] < free.gradients[bound.success]).all()
    assert torch.equal(bound.gradients[~bound.success], free.gradients[~bound.success])
    assert bound.distance.max() <= eps + 1e-5


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_counter_equals_the_rows_the_model_saw(norm):
    model, x, y = small_net()
    seen = {}
    for rounds in (1, 3):
        record = []
        outcome = CW(norm=norm, binary_steps=rounds, steps=12).run(Watched(model, record), x, y, run=Run())
        seen[rounds] = sum(record), int(outcome.queries.sum())
        assert torch.equal(outcome.queries, outcome.gradients)
        assert outcome.queries.max() <= rounds * 12
    # What does not depend on the budget, the checks at the door and the verdicts, cancels.
    assert seen[3][0] - seen[1][0] == seen[3][1] - seen[1][1]


def test_more_rounds_find_nothing_farther():
    model, x, y = small_net()
    medians = [CW(binary_steps=b, steps=60).run(model, x, y, run=Run()).distance for b in (1, 3, 6)]
    assert (medians[1] <= medians[0] + 1e-6)[medians[0] > 0].all()
    assert (medians[2] <= medians[1] + 1e-6)[medians[1] > 0].all()


def test_targets_are_reached_at_a_distance_no_smaller_than_any_error():
    model, x, y = small_net(8)
    target = (y + 1) % 4
    any_, given = (CW(binary_steps=4).run(model, x, y, run=Run(), target=t) for t in (None, target))
    assert torch.equal(given.predictions[given.success], target[given.success])
    assert given.success.float().mean() > 0.9
    assert given.distance[given.success].median() >= any_.distance.median()
