import pytest
import torch
import torch.nn.functional as F

from holdfast.evasion import NES
from holdfast.evasion.losses import loss_for
from holdfast.evasion.nes import Climb, slopes, smoothed_gradient
from holdfast.models import build_model
from holdfast.run import Run


class Quadratic:
    """An oracle whose margin of class 0 over class 1 is a quadratic, in float64; counts what it is asked."""

    limit = 16

    def __init__(self, pixels=48, seed=0):
        generator = torch.Generator().manual_seed(seed)
        half = torch.randn(pixels, pixels, generator=generator, dtype=torch.float64) / pixels**0.5
        self.matrix, self.linear = half @ half.T, torch.randn(pixels, generator=generator, dtype=torch.float64)
        self.rows, self.largest = 0, 0

    def value(self, x):
        x = x.flatten(1)
        return (x @ self.matrix * x).sum(1) / 2 + x @ self.linear

    def gradient(self, x):
        return (x.flatten(1) @ self.matrix + self.linear).view(x.shape)

    def logits(self, x):
        self.rows += len(x)
        self.largest = max(self.largest, len(x))
        value = self.value(x)
        return torch.stack([value, torch.zeros_like(value)], 1)


def setting(n=3):
    x = 0.3 + 0.4 * torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Quadratic(), x, torch.ones(n, dtype=torch.int64)


def test_the_smoothed_gradient_of_a_quadratic_is_nearly_its_gradient():
    oracle, x, y = setting()
    pixels = x[0].numel()
    generator = torch.Generator().manual_seed(2)

    def direction(_):
        return torch.randn(x.shape, generator=generator, dtype=torch.float64) / pixels**0.5

    pairs = 5 * pixels  # hence ten queries for each pixel
    estimate = smoothed_gradient(oracle, x, direction, pairs, 0.01, loss_for("any", "margin"), y, y)
    assert (F.cosine_similarity(estimate.flatten(1), oracle.gradient(x).flatten(1)) >= 0.9).all()
    assert oracle.rows == 2 * pairs * len(x)
    assert oracle.largest <= 16


def test_slopes_of_a_quadratic_are_exact_because_both_sides_are_asked():
    """A difference with the point itself would be off by the curvature."""
    oracle, x, y = setting()
    ways = torch.randn(5, *x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = [s for _, s in slopes(oracle, x, ways.__getitem__, 5, 0.05, loss_for("any", "margin"), y, y)]
    expected = (ways * oracle.gradient(x)).flatten(2).sum(2)
    assert torch.allclose(torch.stack(found), expected, atol=1e-10)


def test_directions_have_unit_length_and_differ_between_images_steps_and_pairs(monkeypatch):
    seen = []

    def spy(oracle, x, direction, count, *more):
        seen.extend(direction(k) for k in range(count))
        return smoothed_gradient(oracle, x, direction, count, *more)

    monkeypatch.setattr("holdfast.evasion.nes.smoothed_gradient", spy)
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=Run(seed=3)).eval()
    x = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    NES(eps=1e-4, pairs=3, queries=14).run(model, x, y, run=Run())
    ways = torch.cat(seen).flatten(1).double()
    assert len(ways) == 2 * 3 * 4, "two steps of three pairs for four images"
    assert torch.allclose(ways.norm(dim=1), torch.ones(()).double(), atol=0.15)
    cosines = F.normalize(ways) @ F.normalize(ways).T - torch.eye(len(ways))
    assert cosines.abs().max() < 0.3


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.4)])
def test_it_climbs(norm, eps):
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=Run(seed=3)).eval()
    x = torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    few, many = (NES(eps=eps, norm=norm, queries=q).run(model, x, y, run=Run()) for q in (41, 410))
    assert many.success.sum() > few.success.sum()
    assert many.success.float().mean() > 0.4


def test_a_budget_too_small_for_the_pairs_buys_fewer():
    climb = Climb(NES(queries=25), "any", 0)
    assert (climb.pairs, climb.steps, climb.queries) == (12, 1, 25)
    climb = Climb(NES(queries=100), "any", 0)
    assert (climb.pairs, climb.steps, climb.queries) == (20, 2, 41)
