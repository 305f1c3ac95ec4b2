import copy

import pytest
import torch
from torch import nn

from holdfast.errors import UserError
from holdfast.models import build_model, reinitialised
from holdfast.run import Run


@pytest.fixture
def model():
    model = build_model("resnet20", num_classes=4, image_shape=(3, 16, 16), mean=(0.1, 0.2, 0.3), run=Run(seed=1))
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for n, b in model.named_buffers() if "running" in n)):
            tensor.fill_(5)  # as if training had left its mark everywhere
    model.bn1.num_batches_tracked.fill_(9)
    return model


def test_no_trace_of_the_training_is_left(model):
    fresh = reinitialised(model, run=Run())
    assert not any((p == 5).any() for p in fresh.parameters())
    assert torch.equal(fresh.bn1.running_mean, torch.zeros(16))
    assert torch.equal(fresh.bn1.running_var, torch.ones(16))
    assert fresh.bn1.num_batches_tracked == 0
    assert fresh.conv1.weight.std() > 0.01
    assert fresh.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["resnet20", "vit(dim=24, depth=1)", "mlp", "convnet"])
def test_a_bundled_model_starts_from_the_weights_of_its_architecture(name):
    model = build_model(name, num_classes=4, image_shape=(3, 16, 16), run=Run(seed=1))
    fresh, built = (
        reinitialised(model, run=Run(seed=2)),
        build_model(name, num_classes=4, image_shape=(3, 16, 16), run=Run(seed=2)),
    )
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), built.parameters(), strict=True))
    assert not torch.equal(next(fresh.parameters()), next(model.parameters()))


def test_a_changed_bundled_model_is_still_drawn_anew(model):
    model.fc = nn.Linear(64, 9)
    fresh = reinitialised(model, run=Run())
    assert fresh.fc.weight.shape == (9, 64)
    assert not any((p == 5).any() for p in fresh.parameters())


def test_constants_modes_and_gradient_flags_stay(model):
    model.eval()
    model.conv1.weight.requires_grad_(False)
    fresh = reinitialised(model, run=Run())
    assert torch.equal(fresh.normalize.mean, model.normalize.mean)
    assert not any(m.training for m in fresh.modules())
    assert [p.requires_grad for p in fresh.parameters()] == [p.requires_grad for p in model.parameters()]


def test_the_given_model_and_the_global_generator_are_left_alone(model):
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    reinitialised(model, run=Run())
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_draw_depends_on_the_seed_alone(model):
    a = reinitialised(model, run=Run(seed=1))
    torch.rand(3)
    b, c = reinitialised(model, run=Run(seed=1)), reinitialised(model, run=Run(seed=2))
    assert torch.equal(a.conv1.weight, b.conv1.weight)
    assert not torch.equal(a.conv1.weight, c.conv1.weight)


def test_shared_weights_stay_shared():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    fresh = reinitialised(model, run=Run())
    assert fresh[1].weight is fresh[0].weight


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.ones(4))
        self.attention = nn.MultiheadAttention(8, 2)
        self.linear = nn.Linear(2, 2)


class OwnTokens(Tokens):
    def reset_parameters(self):
        nn.init.constant_(self.token, 0.5)
        nn.init.constant_(self.linear.weight, 3)


def test_a_parameter_that_nobody_resets_is_named():
    with pytest.raises(UserError, match=r"no reset_parameters\(\) sets 'token'; give Tokens a reset_parameters method"):
        reinitialised(Tokens(), run=Run())


def test_a_module_has_the_last_word_over_its_children():
    fresh = reinitialised(OwnTokens(), run=Run())
    assert (fresh.token == 0.5).all()
    assert (fresh.linear.weight == 3).all()
    assert fresh.attention.in_proj_weight.isfinite().all()


def test_parametrised_weights_are_refused_rather_than_kept():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(UserError, match="cannot be reinitialised"):
        reinitialised(model, run=Run())
