"""Fused forward passes: the same logits, wherever anything can be fused at all; and nearly the same ones in bf16."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.models import build_model, fast_twin, fuse_for_inference, round_for_inference
from holdfast.models.fuse import _Convolution
from holdfast.run import computes_bf16


@pytest.fixture
def trusted(monkeypatch):
    """Take the models of this file for known ones."""
    monkeypatch.setattr("holdfast.models.fuse._KNOWN", {"torch", "holdfast", __name__.split(".")[0]})


def fused_of(model, x):
    """The twin and its fused form, and how many convolutions were fused."""
    twin = fast_twin(model.eval(), x)
    quick = fuse_for_inference(twin, x)
    return twin, quick, sum(isinstance(m, _Convolution) for m in quick.modules())


def trained_like(model):
    """Running statistics and biases as after a training, so that nothing is trivially zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
    return model


@pytest.mark.parametrize(("name", "least"), [("resnet20", 19), ("convnet", 2), ("vgg16-bn", 13), ("wrn-10-1", 3)])
@pytest.mark.parametrize("count", [1, 5, 33])
def test_a_fused_network_gives_the_same_logits_for_any_number_of_images(name, least, count):
    model = trained_like(build_model(name, num_classes=10, image_shape=(3, 32, 32)))
    generator = torch.Generator().manual_seed(1)
    twin, quick, fused = fused_of(model, torch.rand(4, 3, 32, 32, generator=generator))
    x = torch.rand(count, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.allclose(quick(x), twin(x), rtol=1e-4, atol=1e-5)
    assert fused >= least


class Awkward(nn.Module):
    """Everything that must not be fused: outputs read twice, strings as padding, reflection, addition of a number."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(3, 4, 3, padding=1)
        self.same = nn.Conv2d(4, 4, 3, padding="same")
        self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.plain = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.twice(x)
        h = F.relu(h) + h
        h = F.relu(self.mirrored(F.relu(self.same(h))))
        h = torch.relu(self.plain(h) + 0.5)
        return self.head(h.mean((2, 3)))


def test_what_cannot_be_fused_is_computed_as_before(trusted):
    torch.default_generator.manual_seed(0)
    model, x = Awkward().eval(), torch.rand(6, 3, 8, 8)
    quick = fuse_for_inference(model, x)
    with torch.no_grad():
        assert torch.allclose(quick(x), model(x), atol=1e-6)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        h = self.conv(x).relu()
        return h.mean((2, 3)) if float(x.sum()) > 0 else h.amax((2, 3))


def test_a_model_that_defies_tracing_is_returned_itself(trusted):
    model = Branching().eval()
    assert fuse_for_inference(model, torch.rand(2, 3, 8, 8)) is model


def test_the_two_orders_of_an_addition_and_two_convolutions_added_agree(trusted):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            first = F.relu(self.a(x) + self.b(x))
            second = F.relu(torch.add(x.mean(1, keepdim=True).expand(-1, 4, -1, -1).contiguous(), self.b(x)))
            return (first - second).mean((2, 3))

    torch.default_generator.manual_seed(0)
    model, x = Sum().eval(), torch.rand(5, 3, 9, 7)
    quick = fuse_for_inference(model, x)
    assert quick is not model
    with torch.no_grad():
        assert torch.allclose(quick(x), model(x), atol=1e-6)


def test_a_strangers_code_is_left_alone_for_it_may_do_more_than_compute():
    torch.default_generator.manual_seed(0)
    model, x = Awkward().eval(), torch.rand(6, 3, 8, 8)
    assert fuse_for_inference(model, x) is model


@pytest.mark.skipif(not computes_bf16("cpu"), reason="this processor does not compute in bf16")
@pytest.mark.parametrize(("name", "least"), [("resnet20", 19), ("convnet", 2), ("wrn-10-1", 3)])
def test_the_copy_in_bf16_gives_nearly_the_same_logits_and_leaves_the_weights_alone(name, least):
    model = trained_like(build_model(name, num_classes=10, image_shape=(3, 32, 32)))
    x = torch.rand(33, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=torch.channels_last)
    twin = fast_twin(model.eval(), x[:4])
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    rounded = round_for_inference(twin, x[:4])
    fused = [module for module in rounded.modules() if isinstance(module, _Convolution)]
    assert len(fused) >= least
    assert {module.weight.dtype for module in fused} == {torch.bfloat16}
    with torch.no_grad():
        expected, got = twin(x), rounded(x)
    reach = expected.amax(1, keepdim=True) - expected.amin(1, keepdim=True)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() > 0
    assert ((got - expected).abs() <= 2**-5 * reach).all()
    after = twin.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())


def test_what_has_no_convolution_to_fuse_runs_under_autocast():
    torch.default_generator.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4)), torch.rand(5, 3, 4, 4)
    with torch.no_grad():
        got, expected = round_for_inference(model, x)(x), model(x)
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = model(x).float()
    assert torch.equal(got, under_autocast)
    assert not torch.equal(got, expected)


def test_there_is_no_copy_in_bf16_of_a_network_that_bf16_drowns():
    class Touchy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(48, 4)

        def forward(self, x):
            return (1000 * self.linear(x.flatten(1))).sin()

    torch.default_generator.manual_seed(0)
    assert round_for_inference(Touchy(), torch.rand(5, 3, 4, 4)) is None
