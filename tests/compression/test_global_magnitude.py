import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from holdfast.compression import GlobalMagnitude, HoldMasks, prunable
from holdfast.data import Data, Images
from holdfast.errors import UserError
from holdfast.models import build_model
from holdfast.run import Run
from holdfast.training import fit


@pytest.fixture
def model():
    return build_model("resnet20", num_classes=4, image_shape=(3, 16, 16), run=Run(seed=3)).eval()


@pytest.fixture(scope="module")
def images():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(60, 3, 16, 16, generator=rng)
    return Images(x=x, y=torch.randint(4, (60,), generator=rng), classes=tuple("abcd"))


def zeros(model):
    weights = torch.cat([w.detach().flatten() for w in prunable(model).values()])
    return int((weights == 0).sum()), len(weights)


@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.99])
def test_exactly_the_asked_share_becomes_zero(model, images, sparsity):
    count, total = zeros(GlobalMagnitude(sparsity=sparsity)(model, images, run=Run()))
    assert count == total - round((1 - sparsity) * total)


def test_the_choice_is_that_of_torch(model, images):
    ours = GlobalMagnitude(sparsity=0.8, recalibrate=0)(model, None, run=Run())
    modules = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    prune.global_unstructured(modules, prune.L1Unstructured, amount=zeros(ours)[0])
    for (module, _), ours_weight in zip(modules, prunable(ours).values(), strict=True):
        assert torch.equal(module.weight, ours_weight)


def test_channels_last_weights_are_pruned_alike(model):
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    method = GlobalMagnitude(sparsity=0.8)
    a, b = (method.masks(m, None, 0.8, run=Run()) for m in (model, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_given_model_is_left_as_it_was(model, images):
    model.train()
    before = copy.deepcopy(model.state_dict())
    pruned = GlobalMagnitude()(model, images, run=Run())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert pruned.state_dict().keys() == before.keys()
    assert pruned.training


def test_sparsity_zero_changes_no_bit(model, images):
    pruned = GlobalMagnitude(sparsity=0)(model, images, run=Run())
    assert torch.equal(pruned(images.x), model(images.x))


def test_batch_norm_learns_its_statistics_anew(model, images):
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.fill_(7)
    run = Run()
    stale = GlobalMagnitude(recalibrate=0)(model, None, run=run)
    fresh = GlobalMagnitude()(model, Data(name="d", test=images, train=images), run=run)
    assert (stale.bn1.running_mean == 7).all()
    x = fresh.normalize(images.x)
    maps = fresh.conv1(x)
    assert torch.allclose(fresh.bn1.running_mean, maps.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(fresh.bn1.running_var, maps.var((0, 2, 3)), rtol=1e-3)
    assert fresh.bn1.momentum == model.bn1.momentum
    assert not any(m.training for m in fresh.modules())


def test_recalibration_without_training_images_is_refused(model, images):
    with pytest.raises(UserError, match="takes training images; there are none"):
        GlobalMagnitude()(model, Data(name="d", test=images), run=Run())
    GlobalMagnitude()(build_model("mlp", num_classes=4, image_shape=(3, 16, 16), run=Run()), None, run=Run())


def test_equal_runs_give_equal_models(model, images):
    a, b = (GlobalMagnitude(recalibrate=20)(model, images, run=Run(seed=5)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_first_and_last_layer_can_be_spared(model):
    masks = GlobalMagnitude(keep_first=True, keep_last=True).masks(model, None, 0.9, run=Run())
    assert "conv1.weight" not in masks
    assert "fc.weight" not in masks


def test_pruned_weights_stay_zero_through_a_training(images):
    run = Run(seed=2)
    model = build_model("mlp", num_classes=4, image_shape=(3, 16, 16), run=run)
    method = GlobalMagnitude(sparsity=0.9)
    masks = method.masks(model, images, 0.9, run=run)
    pruned = method(model, images, run=run)
    trained = fit(pruned, images, epochs=3, batch_size=20, callbacks=[HoldMasks(masks)], run=run).model
    assert zeros(trained)[0] >= zeros(GlobalMagnitude(sparsity=0.9)(model, None, run=run))[0]
    for name, weight in prunable(trained).items():
        assert not weight[~masks[name]].any()
        assert not torch.equal(weight, prunable(model)[name])
