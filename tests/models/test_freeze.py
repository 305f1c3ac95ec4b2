import copy
import warnings

import pytest
import torch
from torch import nn

from holdfast import UserError
from holdfast.models import NonDeterministic, build_model, check_model, frozen, full_precision


@pytest.fixture
def model():
    return build_model("convnet(width=4)", num_classes=3, image_shape=(3, 8, 8))


def state_of(model):
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [m.training for m in model.modules()],
        [t.requires_grad for t in tensors],
        [t.stride() for t in tensors],
        [t.data_ptr() for t in tensors],
        [t.detach().clone() for t in tensors],
    )


def assert_same(before, after):
    for old, new in zip(before[:-1], after[:-1], strict=True):
        assert old == new
    for old, new in zip(before[-1], after[-1], strict=True):
        assert torch.equal(old, new)


def odd_state(model):
    """A state that a blanket train() or requires_grad_() would not bring back."""
    model.train()
    model.features[1].eval()
    model.fc.weight.requires_grad_(False)
    return model


def test_the_block_gets_an_evaluating_model_without_weight_gradients_channels_last(model):
    with frozen(odd_state(model)) as lent:
        assert lent is model
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        weight = model.features[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        x = torch.rand(2, 3, 8, 8, requires_grad=True)
        assert torch.autograd.grad(model(x).sum(), x)[0].abs().sum() > 0


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, None])
def test_everything_is_as_before_however_the_block_ends(model, stop):
    before = state_of(odd_state(model))
    try:
        with frozen(model):
            model(torch.rand(4, 3, 8, 8))
            if stop is not None:
                raise stop
    except (ValueError, KeyboardInterrupt):
        pass
    assert_same(before, state_of(model))


def test_a_nested_block_restores_the_outer_one(model):
    before = state_of(odd_state(model))
    with frozen(model):
        inside = state_of(model)
        with frozen(model):
            pass
        assert_same(inside, state_of(model))
    assert_same(before, state_of(model))


def test_the_device_is_changed_and_restored_and_ties_hold(model):
    model.tied = nn.Linear(16, 3)
    model.tied.weight = model.fc.weight
    before = state_of(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with frozen(model, device=device, check=torch.rand(2, 3, 8, 8)):
        assert model(torch.rand(2, 3, 8, 8, device=device)).device.type == device.type
    assert_same(before, state_of(model))
    assert model.tied.weight is model.fc.weight


def test_parameters_keep_their_identity_for_an_optimizer(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with frozen(model):
        pass
    weight = model.features[0].weight.detach().clone()
    model(torch.rand(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(weight, model.features[0].weight)


def test_a_failed_check_restores_too(model):
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = odd_state(model)

        def forward(self, x):
            return self.inner(x - x.mean(0))

    mixing = Mixing()
    before = state_of(mixing)
    with pytest.raises(UserError, match="computes across the batch"), frozen(mixing, check=torch.rand(4, 3, 8, 8)):
        pass
    assert_same(before, state_of(mixing))


class StubbornNorm(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


def with_norm(norm):
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("norm", "cause"),
    [
        (StubbornNorm(4), "the batch norm '1' stays in training mode"),
        (nn.BatchNorm2d(4, track_running_stats=False), "the batch norm '1' has no running statistics"),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_batch_norm_that_mixes_samples_is_refused_by_name(norm, cause, count):
    with pytest.raises(UserError, match=cause), frozen(with_norm(norm), check=torch.rand(count, 3, 8, 8)):
        pass


def test_the_check_accepts_ordinary_models_silently(model):
    for good in (model, with_norm(nn.BatchNorm2d(4)), with_norm(nn.InstanceNorm2d(4)), with_norm(nn.Dropout(0.5))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with frozen(good, check=torch.rand(5, 3, 8, 8)):
                pass


class Noisy(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3] + 0.1 * torch.randn(len(x), 3)


def test_a_random_model_is_warned_of_and_not_taken_for_one_that_mixes_samples():
    x = torch.rand(6, 1, 4, 4)
    state = torch.get_rng_state()
    with pytest.warns(NonDeterministic, match="two passes over the same images differ"):
        check_model(Noisy(), x)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: (x.flatten(1), x), "returns a tuple"),
        (lambda x: {"logits": x.flatten(1)}, "returns a dict"),
        (lambda x: x, r"must have shape \(4, classes\) for 4 images, got \(4, 1, 2, 2\)"),
        (lambda x: x.flatten(1).sum(0, keepdim=True), r"got \(1, 4\)"),
        (lambda x: x.flatten(1).argmax(1, keepdim=True), "floating-point"),
        (lambda x: x.flatten(1) / 0, "NaN or infinite"),
        (lambda x: x.flatten(1) @ torch.ones(9, 2), "fails on a batch of 4 images of shape 1x2x2: RuntimeError"),
        (lambda x: x.reshape(4, 4), "fails on a batch of 1 images"),
    ],
)
def test_an_output_that_is_no_logits_is_refused_in_one_sentence(forward, message):
    class Model(nn.Module):
        def forward(self, x):
            return forward(x)

    with pytest.raises(UserError, match=message):
        check_model(Model(), torch.rand(4, 1, 2, 2) + 0.1)


def test_lazy_layers_are_refused():
    with pytest.raises(UserError, match="lazy"), frozen(nn.Sequential(nn.Flatten(), nn.LazyLinear(3))):
        pass


def test_an_exported_program_can_be_lent(model):
    model.eval()
    x = torch.rand(4, 3, 8, 8)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(copy.deepcopy(model), (x,), dynamic_shapes=({0: batch},)).module()
    with frozen(program, check=x):
        torch.testing.assert_close(program(x), model(x))


def test_full_precision_switches_tf32_off_and_back():
    def switches():
        conv = getattr(torch.backends.cudnn, "conv", None)
        if hasattr(conv, "fp32_precision"):
            return conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = switches()
    with full_precision():
        assert switches() in {("ieee", "ieee"), (False, False)}
    assert switches() == before
