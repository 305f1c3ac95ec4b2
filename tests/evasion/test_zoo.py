import pytest
import torch

from holdfast.evasion import ZOO
from holdfast.evasion.losses import loss_for
from holdfast.evasion.zoo import CoordinateAdam, partial_derivatives
from holdfast.models import build_model
from holdfast.run import Run


class Smooth:
    """An oracle in float64 without kinks near the images."""

    limit = 10

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.a = torch.randn(96, 20, generator=generator, dtype=torch.float64) / 5
        self.b = torch.randn(20, 4, generator=generator, dtype=torch.float64)

    def logits(self, x):
        return torch.tanh(x.double().flatten(1) @ self.a) @ self.b


def setting():
    x = 0.2 + 0.6 * torch.rand(3, 2, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    oracle = Smooth()
    return oracle, x, oracle.logits(x).argmax(1)


def true_gradient(oracle, x, y):
    x = x.clone().requires_grad_()
    log_p = oracle.logits(x).log_softmax(1)
    others = log_p.scatter(1, y[:, None], -float("inf")).amax(1)
    hinge = log_p.gather(1, y[:, None]).squeeze(1) - others
    return torch.autograd.grad(-hinge.sum(), x)[0]


def test_partial_derivatives_equal_autograd():
    oracle, x, y = setting()
    chosen = torch.stack([torch.randperm(96, generator=torch.Generator().manual_seed(k))[:20] for k in range(3)])
    found = partial_derivatives(oracle, x, chosen, (6, 8), 1e-4, loss_for("any", "margin"), y, y)
    expected = true_gradient(oracle, x, y).flatten(1).gather(1, chosen)
    assert torch.allclose(found, expected, rtol=1e-2, atol=1e-6)


def test_on_a_coarser_grid_a_derivative_is_the_sum_over_the_block():
    oracle, x, y = setting()
    chosen = torch.arange(2 * 3 * 4).expand(3, -1)
    found = partial_derivatives(oracle, x, chosen, (3, 4), 1e-4, loss_for("any", "margin"), y, y)
    blocks = true_gradient(oracle, x, y).unfold(2, 2, 2).unfold(3, 2, 2).sum((4, 5))
    assert torch.allclose(found, blocks.flatten(1), rtol=1e-2, atol=1e-6)


def test_the_step_is_adams_with_a_count_for_each_coordinate():
    generator = torch.Generator().manual_seed(0)
    search = CoordinateAdam(ZOO(eps=0.9, step=0.01), "any", 0)
    state = {"x0": torch.full((1, 1, 2, 2), 0.5)}
    search.begin(state)
    plain = [torch.zeros(1, requires_grad=True) for _ in range(4)]
    optimizers = [torch.optim.Adam([p], lr=0.01) for p in plain]
    for chosen in ([0, 1], [1, 3], [1, 2], [0, 1]):
        gradient = torch.randn(1, 2, generator=generator)
        search.adam(state, torch.tensor([chosen]), gradient)
        for place, g in zip(chosen, gradient[0], strict=True):
            plain[place].grad = -g[None]  # ZOO climbs, torch descends
            optimizers[place].step()
    assert torch.allclose(state["offset"].flatten(), torch.cat(plain).detach(), atol=1e-6)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.3)])
def test_it_finds_more_the_more_coordinates_it_can_afford(norm, eps):
    model = build_model("convnet", num_classes=4, image_shape=(3, 8, 8), run=Run(seed=3)).eval()
    x = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    few, many = (
        ZOO(eps=eps, norm=norm, step=0.05, coordinates=20, queries=q).run(model, x, y, run=Run()) for q in (41, 410)
    )
    assert many.success.sum() > few.success.sum()


def test_more_coordinates_than_there_are_look_at_some_twice():
    model = build_model("convnet", num_classes=3, image_shape=(1, 2, 2), run=Run(seed=3)).eval()
    x = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    outcome = ZOO(eps=1e-5, coordinates=9, queries=19).run(model, x, y, run=Run())
    assert (outcome.queries == 19).all()
    assert (outcome.x_adv != x).flatten(1).all()
