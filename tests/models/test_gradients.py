import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast import UserError
from holdfast.models import build_model, sample_gradients


@pytest.mark.parametrize("name", ["resnet20(width=4)", "vit(dim=24, depth=1)"])
def test_sample_gradients_equal_one_backward_pass_per_sample(name):
    model = build_model(name, num_classes=3, image_shape=(1, 8, 8)).double()
    x, y = torch.rand(5, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    gradients = sample_gradients(model, x, y, chunk=2)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    model.eval()
    for index in range(5):
        loss = F.cross_entropy(model(x[index : index + 1]), y[index : index + 1])
        expected = torch.autograd.grad(loss, list(model.parameters()))
        for (name, _), value in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(gradients[name][index], value, rtol=1e-9, atol=1e-12)


def test_some_parameters_and_another_loss():
    model = build_model("convnet(width=4)", num_classes=3, image_shape=(1, 8, 8))
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 2, 1, 1])
    gradients = sample_gradients(model, x, y, parameters=["fc.bias"], loss=lambda z, y: z.gather(1, y[None]).sum())
    assert list(gradients) == ["fc.bias"]
    torch.testing.assert_close(gradients["fc.bias"], F.one_hot(y, 3).float())
    with pytest.raises(UserError, match=r"parameter 'fc.weigth' is unknown. Did you mean 'fc.weight'"):
        sample_gradients(model, x, y, parameters=["fc.weigth"])


def test_a_model_that_leaves_tensors_is_refused():
    class Leaves(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(x.flatten(1)) * x.max().item()

    with pytest.raises(UserError, match="sample by sample"):
        sample_gradients(Leaves(), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
