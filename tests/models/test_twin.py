import pytest
import torch
from torch import nn

from holdfast.models import build_model, check_model, fast_twin, weights_hash

FOLDABLE = ["resnet20", "preact-resnet18", "wrn-10-1", "vgg11-bn", "mobilenet-v2", "convnet"]


def trained_looking(model):
    """Batch norms with statistics and gains far from the identity."""
    rng = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.3, 3),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):
                values.uniform_(low, high, generator=rng)
    return model


def norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", FOLDABLE)
def test_the_twin_computes_the_same_with_fewer_layers(name):
    model = trained_looking(build_model(name, num_classes=10, image_shape=(3, 16, 16)))
    before = weights_hash(model)
    x = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    twin = fast_twin(model, x[:4])
    assert weights_hash(model) == before
    assert model.training
    assert len(norms(twin)) < len(norms(model))
    if name in ("resnet20", "vgg11-bn", "mobilenet-v2", "convnet"):  # elsewhere some follow no convolution
        assert norms(twin) == []
    assert not any(p.requires_grad for p in twin.parameters())
    assert not any(m.training for m in twin.modules())
    check_model(twin, x)
    model.eval()
    with torch.no_grad():
        expected, got = model(x), twin(x)
    assert (expected - got).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", FOLDABLE)
def test_folding_is_an_identity_of_values_and_gradients(name):
    """In float64: in float32 an activation within rounding of 0 may open or close, and its gradient with it."""
    model = trained_looking(build_model(name, num_classes=10, image_shape=(3, 16, 16))).double()
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twin = fast_twin(model, x)
    assert len(norms(twin)) < len(norms(model))
    model.eval()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    values = [m(i).logsumexp(1) for m, i in zip((model, twin), inputs, strict=True)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-11, atol=1e-11)
    gradients = [torch.autograd.grad(v.sum(), i)[0] for v, i in zip(values, inputs, strict=True)]
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-11 * gradients[0].abs().max()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)


class Plain(Block):
    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))


class ReadsTwice(Block):
    """The convolution's output goes elsewhere too, so folding would change the model."""

    def forward(self, x):
        z = self.conv(x)
        return self.fc((self.bn(z) + z).mean((2, 3)))


class WritesBetween(Block):
    def forward(self, x):
        z = self.conv(x)
        z += 1
        return self.fc(self.bn(z).mean((2, 3)))


class UsedTwice(Block):
    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).mean((2, 3)) + self.conv(x.flip(-1)).mean((2, 3)))


class ReadsTheNorm(Block):
    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).mean((2, 3)) * self.bn.weight)


@pytest.mark.parametrize("kind", [ReadsTwice, WritesBetween, UsedTwice, ReadsTheNorm])
def test_a_model_that_folding_would_change_is_copied_unfolded(kind):
    model = trained_looking(kind())
    x = torch.rand(6, 3, 8, 8)
    twin = fast_twin(model, x)
    assert twin is not model
    assert norms(twin) == ["bn"]
    with torch.no_grad():
        torch.testing.assert_close(twin(x), model.eval()(x))


def test_code_that_no_tracer_follows_is_folded_too():
    class Branches(Block):
        def forward(self, x):
            if x.max() > 2:
                return self.fc(x.mean((2, 3)))
            return self.fc(self.bn(self.conv(x)).mean((2, 3)))

    model = trained_looking(Branches())
    assert norms(fast_twin(model, torch.rand(4, 3, 8, 8))) == []


def test_weight_norm_is_left_alone():
    model = trained_looking(Plain())
    nn.utils.parametrizations.weight_norm(model.conv)
    x = torch.rand(4, 3, 8, 8)
    twin = fast_twin(model, x)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), model.eval()(x))


def test_a_model_that_cannot_be_copied_is_returned_itself():
    class Uncopyable(Plain):
        def __deepcopy__(self, memo):
            raise TypeError("no")

    model = Uncopyable()
    assert fast_twin(model, torch.rand(2, 3, 8, 8)) is model


def test_a_copy_that_runs_its_original_does_not_change_it():
    model = Block()
    model.forward = lambda x: model.fc(model.bn(model.conv(x)).mean((2, 3)))
    before = weights_hash(model)
    fast_twin(model, torch.rand(2, 3, 8, 8))
    assert weights_hash(model) == before
    assert model.bn.training
