import pytest
import torch
from torch import nn

from holdfast import Run, UserError
from holdfast.models import build_model, latency, layers, measure


def test_operations_of_resnet20_are_those_of_its_convolutions():
    """Multiplications and additions, from the layer sizes of the paper's table."""
    stage1 = 6 * 16 * 16 * 9 * 32 * 32
    stage2 = (16 * 32 + 5 * 32 * 32) * 9 * 16 * 16
    stage3 = (32 * 64 + 5 * 64 * 64) * 9 * 8 * 8
    expected = 2 * (3 * 16 * 9 * 32 * 32 + stage1 + stage2 + stage3 + 64 * 10)
    cost = measure(build_model("resnet20", num_classes=10), (3, 32, 32))
    assert cost.flops == expected
    assert cost.parameters == 269_722
    assert cost.nonzero == 269_722 - 688  # batch norms start with shifts of 0
    assert cost.size_bytes == 4 * (269_722 + 2 * 688 + 6) + 8 * 19
    assert cost.buffers == 2 * 688 + 6 + 19


def test_attention_is_counted():
    model = build_model("vit(dim=24, depth=1)", num_classes=3, image_shape=(1, 8, 8))
    tokens, dim = 65, 24
    linear = tokens * (dim * 3 * dim + dim * dim + 2 * dim * 4 * dim) + dim * 3 + 64 * dim
    attention = 2 * tokens * tokens * dim
    assert measure(model, (1, 8, 8)).flops == 2 * (linear + attention)


def test_pruned_and_shared_weights_are_counted_as_they_are():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[1].weight
    with torch.no_grad():
        model[1].weight[0] = 0
    cost = measure(model, (1, 2, 2), Run())
    assert cost.parameters == 16 + 8
    assert cost.nonzero == 12 + 8
    assert model.training


def test_a_model_without_countable_operations_has_no_count():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    assert measure(Mean(), (3, 4, 4)).flops is None


def test_a_shape_the_model_does_not_take_is_refused():
    with pytest.raises(UserError, match="takes images of 3 channels, got 1"):
        measure(build_model("resnet20", num_classes=3), (1, 8, 8))


def test_layers_lists_every_submodule_once_with_its_own_parameters():
    model = build_model("resnet20", num_classes=10)
    model.fc.bias.requires_grad_(False)
    listed = {layer.name: layer for layer in layers(model)}
    assert "" not in listed
    assert sum(layer.parameters for layer in listed.values()) == 269_722
    fc = listed["fc"]
    assert (fc.kind, fc.parameters, fc.trainable, fc.weight, fc.leaf) == ("Linear", 650, 640, (10, 64), True)
    assert not listed["layer1.0"].leaf
    assert listed["layer1.0"].parameters == 0
    for name in listed:
        model.get_submodule(name)


def test_latency_gives_every_sample():
    model = build_model("convnet(width=4)", num_classes=3, image_shape=(1, 8, 8))
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    times = latency(model, (1, 8, 8), Run(device="cpu"), repeats=10, batch=16, seconds=5)
    assert len(times.samples_ms) == 10
    assert len(times.bulk_ms) == 3
    assert seen.count(16) >= 3
    assert 0 < times.median_ms <= times.p95_ms
    assert times.throughput == pytest.approx(16 / sorted(times.bulk_ms)[1] * 1000)
    assert model.training


def test_latency_stops_in_time():
    model = build_model("convnet(width=4)", num_classes=3, image_shape=(1, 8, 8))
    times = latency(model, (1, 8, 8), Run(device="cpu"), repeats=100_000, batch=2, seconds=0.05)
    assert 3 <= len(times.samples_ms) < 100_000
