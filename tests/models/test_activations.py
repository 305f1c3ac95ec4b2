import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.models import build_model, tap
from holdfast.models.activations import watch
from holdfast.run import Run


class Reuses(nn.Module):
    """One ReLU used twice, a function in between, and an in-place addition to what the ReLU gave."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.act(self.first(x.flatten(1)))
        x += 1
        x = torch.tanh(self.second(x))
        return self.act(x - 0.1)


def outputs(model, x, what="activations"):
    seen = {}
    with torch.no_grad(), watch(model, lambda name, output: seen.__setitem__(name, output.clone()), what):
        model(x)
    return seen


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_module_used_twice_is_told_apart_by_the_order_of_its_calls():
    model, x = Reuses(), torch.rand(3, 4, 1, 1)
    seen = outputs(model, x)
    assert list(seen) == ["act", "tanh", "act#2"]
    first = model.first(x.flatten(1)).relu()
    second = model.second(first + 1).tanh()
    torch.testing.assert_close(list(seen.values()), [first, second, (second - 0.1).relu()])


def test_every_pass_begins_anew():
    model, calls = Reuses(), []
    with watch(model, lambda name, output: calls.append(name)):
        model(torch.rand(3, 4, 1, 1))
        model(torch.rand(2, 4, 1, 1))
    assert calls == ["act", "tanh", "act#2"] * 2


def test_functions_called_in_residual_blocks_are_seen_after_the_addition():
    model = build_model("resnet20", num_classes=10, image_shape=(3, 32, 32), run=Run()).eval()
    x = torch.rand(2, 3, 32, 32)
    seen = outputs(model, x)
    assert len(seen) == 19
    assert list(seen)[:3] == ["relu", "layer1.0.relu", "layer1.0.relu#2"]
    with torch.no_grad(), tap(model, ["layer1.0", "layer3.2"]) as tapped:
        model(x)
    torch.testing.assert_close(seen["layer1.0.relu#2"], tapped["layer1.0"])
    torch.testing.assert_close(seen["layer3.2.relu#2"], tapped["layer3.2"])


def test_layers_with_weights_are_seen_by_name():
    model = build_model("convnet", num_classes=10, image_shape=(1, 8, 8), run=Run()).eval()
    x, names = torch.rand(2, 1, 8, 8), ["features.0", "features.4", "features.8", "fc"]
    seen = outputs(model, x, "weights")
    with torch.no_grad(), tap(model, names) as tapped:
        model(x)
    assert list(seen) == names
    torch.testing.assert_close(seen, tapped)
    assert len(outputs(model, x, "both")) == 7


def test_nothing_is_left_behind_even_after_an_error():
    model, calls = Reuses(), []
    with watch(model, lambda name, output: calls.append(name)):
        assert hooks(model) == 8
    with pytest.raises(RuntimeError), watch(model, lambda name, output: calls.append(name)):
        model(torch.rand(3, 5))
    assert hooks(model) == 0
    model(torch.rand(3, 4))
    F.relu(torch.rand(2))
    assert calls == []


def test_outputs_keep_their_graph():
    model, seen = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), {}
    with watch(model, seen.__setitem__):
        model(torch.rand(3, 4))
    seen["1"].sum().backward()
    assert model[0].weight.grad.any()
    assert model[2].weight.grad is None
