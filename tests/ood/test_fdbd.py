import pytest
import torch
from torch import nn

from holdfast.models import Features
from holdfast.ood import FDBD, fit_on_features


def test_the_score_is_the_mean_distance_to_the_boundaries_by_the_distance_to_the_mean(real):
    (detector,) = fit_on_features([FDBD()], real.train, real.head).values()
    weight, mean = real.head.weight.detach().double(), real.train.penultimate.double().mean(0)
    expected = []
    for h, z in zip(real.test.penultimate[:40].double(), real.test.logits[:40].double(), strict=True):
        best = int(z.argmax())
        ways = [float((z[best] - z[c]) / (weight[best] - weight[c]).norm()) for c in range(10) if c != best]
        expected.append(-sum(ways) / 9 / float((h - mean).norm()))
    torch.testing.assert_close(detector.score(real.test)[:40], torch.tensor(expected).double())


def test_a_distance_is_that_to_the_nearest_point_where_the_decision_changes(real):
    """Moved by it towards the other class, a feature has two equal logits."""
    (detector,) = fit_on_features([FDBD()], real.train, real.head).values()
    z, h = real.test.logits[0].double(), real.test.penultimate[0].double()
    first, second = z.topk(2).indices
    way = real.head.weight.detach().double()[second] - real.head.weight.detach().double()[first]
    moved = h + way / way.norm() * (z[first] - z[second]) / detector.state["apart"][first, second]
    logits = real.head.weight.detach().double() @ moved + real.head.bias.detach().double()
    assert logits[first] == pytest.approx(logits[second].item(), abs=1e-4)


def test_on_every_boundary_at_once_the_score_is_zero():
    head = nn.Linear(3, 2)
    given = Features(logits=torch.zeros(1, 2), penultimate=torch.ones(1, 3), y=torch.zeros(1, dtype=torch.int64))
    (detector,) = fit_on_features([FDBD()], given, head).values()
    assert detector.score(given).item() == 0  # although the feature is the mean itself


def test_classes_of_equal_weights_have_no_boundary_between_them():
    head = nn.Linear(3, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]))
    h = torch.tensor([[2.0, 0, 0], [0.0, 3, 1]])
    given = Features(logits=head(h).detach(), penultimate=h, y=torch.tensor([0, 2]))
    (detector,) = fit_on_features([FDBD()], given, head).values()
    assert torch.isfinite(detector.score(given)).all()
