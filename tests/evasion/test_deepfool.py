import pytest
import torch
from torch import nn

from holdfast.evasion import DeepFool
from holdfast.evasion.deepfool import step_to_boundary
from holdfast.models import build_model
from holdfast.run import Run


class Linear(nn.Module):
    def __init__(self, classes, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn(classes, 27, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return (x - 0.5).flatten(1) @ self.weight.T


def linear(n=30, classes=4):
    """A linear model, and images far enough from the edges of the box that no perturbation meets them."""
    model = Linear(classes)
    x = 0.5 + 0.1 * torch.rand(n, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    return model, x, model(x).argmax(1)


def exact_distances(model, x, y, norm):
    """To the nearest of the planes between the true class and the others, in float64."""
    weight, dual = model.weight.detach().double(), 1 if norm == "linf" else 2
    logits = (x.double() - 0.5).flatten(1) @ weight.T
    normals = weight[None] - weight[y][:, None]
    far = (logits.gather(1, y[:, None]) - logits) / torch.linalg.vector_norm(normals, dual, dim=2)
    return far.scatter(1, y[:, None], torch.inf).amin(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_on_a_linear_model_one_step_is_the_exact_distance_and_the_overshoot(norm):
    model, x, y = linear()
    outcome = DeepFool(norm=norm).run(model, x, y, run=Run())
    exact = exact_distances(model, x, y, norm)
    assert outcome.success.all()
    assert torch.allclose(outcome.distance.double(), 1.02 * exact, rtol=2e-3, atol=1.1e-4)
    # One look at the clean image, one step of two passes, one gradient for each of the four classes.
    assert (outcome.queries == 3).all()
    assert (outcome.gradients == 4).all()


def test_with_fewer_candidates_the_nearest_boundary_may_be_missed():
    model, x, y = linear(n=60, classes=20)
    few, all_ = (DeepFool(candidates=k).run(model, x, y, run=Run()).distance for k in (2, 20))
    assert (few >= all_ - 1e-5).all()
    assert (few > 1.02 * all_).any()


def test_the_scale_of_the_logits_does_not_matter():
    run = Run(seed=3)
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=run).eval()
    x = torch.rand(12, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    plain = DeepFool().run(model, x, y, run=run)

    class Sharp(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return 10 * self.model(x)

    sharp = DeepFool().run(Sharp(), x, y, run=run)
    assert plain.success.all()
    assert torch.allclose(sharp.x_adv, plain.x_adv, atol=1e-4)


def test_images_stay_in_the_box_where_the_plain_step_would_leave_it():
    model, _, _ = linear()
    x = torch.rand(30, 3, 3, 3, generator=torch.Generator().manual_seed(2)).round()
    y = model(x).argmax(1)
    outcome = DeepFool().run(model, x, y, run=Run())
    assert outcome.success.all()
    assert 0 <= outcome.x_adv.min() <= outcome.x_adv.max() <= 1
    assert (outcome.gradients > 4).any(), "what the box takes away costs further steps"


def test_a_target_is_reached_over_the_plane_between_it_and_the_prediction():
    model, x, y = linear(classes=3)
    target = (y + 1) % 3
    outcome = DeepFool().run(model, x, y, run=Run(), target=target)
    assert outcome.success.all()
    assert torch.equal(outcome.predictions, target)


def test_a_step_crosses_the_nearest_plane_and_ignores_classes_without_gradient():
    logits = torch.tensor([[2.0, 1.0, 1.9, 0.0]])
    gradients = torch.zeros(1, 3, 1, 1, 2)
    gradients[0, 1, 0, 0] = torch.tensor([1.0, 0.0])  # class 1: gap 1, gradient 1, distance 1
    # Class 2 is nearer in value, but its gradient is that of class 0: no plane there.
    step = step_to_boundary(logits, gradients, torch.tensor([[0, 1, 2]]), torch.tensor([0]), "l2")
    assert torch.allclose(step.flatten(), torch.tensor([1.0001, 0.0]))
    nowhere = step_to_boundary(logits, torch.zeros_like(gradients), torch.tensor([[0, 1, 2]]), torch.tensor([0]), "l2")
    assert not nowhere.any()
