import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast import catalog
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import OptimizerWrapper
from holdfast.optim.sam import SAM, ascent
from holdfast.run import Run
from holdfast.training import SGD, fit


def net(seed=0):
    rng = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=torch.float64))
    return model


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(20, 6, generator=rng, dtype=torch.float64), torch.randint(0, 3, (20,), generator=rng)


def closure_of(model, optimizer, batch, visited):
    def closure():
        visited.append([p.detach().clone() for p in model.parameters()])
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_the_second_gradient_is_taken_rho_away_along_the_first(batch, rho):
    model, visited = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradient = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
    SAM(rho=rho)(optimizer).step(closure_of(model, optimizer, batch, visited))
    climbed = torch.cat([(b - a).flatten() for a, b in zip(*visited, strict=True)])
    along = torch.cat([g.flatten() for g in gradient])
    assert climbed.norm().item() == pytest.approx(rho, rel=1e-9)
    torch.testing.assert_close(climbed, rho * along / along.norm())


def test_the_step_is_taken_from_the_weights_themselves_with_the_gradient_found_there(batch):
    model, expected = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = SAM(rho=0.3)(optimizer).step(closure_of(model, optimizer, batch, []))
    first = F.cross_entropy(expected(batch[0]), batch[1])
    climb = ascent(list(torch.autograd.grad(first, list(expected.parameters()))), 0.3)
    there = copy.deepcopy(expected)
    with torch.no_grad():
        for p, e in zip(there.parameters(), climb, strict=True):
            p.add_(e)
    gradients = torch.autograd.grad(F.cross_entropy(there(batch[0]), batch[1]), list(there.parameters()))
    for p, before, g in zip(model.parameters(), expected.parameters(), gradients, strict=True):
        torch.testing.assert_close(p, before - 0.1 * g)
    assert loss.item() == first.item()


def test_the_weights_are_restored_to_the_last_bit(batch):
    model = net().float()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    data = batch[0].float(), batch[1]
    for _ in range(5):
        SAM(rho=1.7)(optimizer).step(closure_of(model, optimizer, data, []))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_weights_are_restored_when_the_second_pass_fails(batch):
    model = net()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain, calls = closure_of(model, optimizer, batch, []), []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain()

    with pytest.raises(KeyboardInterrupt):
        SAM()(optimizer).step(closure)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_radius_is_the_plain_optimizer_to_the_last_bit(batch):
    plain, wrapped = net(), net()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (plain, wrapped)]
    sam = SAM(rho=0)(optimizers[1])
    for _ in range(3):
        optimizers[0].step(closure_of(plain, optimizers[0], batch, []))
        sam.step(closure_of(wrapped, optimizers[1], batch, []))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True))


def test_zero_gradients_do_not_make_nan(batch):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (model(batch[0]) * 0).sum()
        loss.backward()
        return loss

    SAM()(optimizer).step(closure)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_weights_without_gradients_are_left_alone(batch):
    model = net()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SAM()(optimizer).step(closure_of(model, optimizer, batch, []))
    assert torch.equal(model[0].weight, before)


@pytest.fixture
def images():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(32, 1, 6, 6, generator=rng)
    return Images(x=x, y=torch.arange(32) % 2, classes=("a", "b"), name="noise")


def normed():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.3)
    return model


def test_in_fit_running_statistics_and_metrics_come_from_the_first_pass_alone(images):
    # One step: the statistics of a plain training are those at the starting weights, and so must SAM's be.
    settings = {"epochs": 1, "batch_size": 32, "optimizer": SGD(lr=0.1), "run": Run()}
    plain = fit(normed(), images, **settings)
    sharp = fit(normed(), images, wrapper=SAM(rho=1.0), **settings)
    assert not torch.equal(sharp.model[0].weight, plain.model[0].weight)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(sharp.model[1], name), getattr(plain.model[1], name))
    assert sharp.history == plain.history


def test_in_fit_no_radius_is_plain_training_to_the_last_bit(images):
    def weights(wrapper):
        result = fit(normed(), images, epochs=2, batch_size=8, accumulate=2, wrapper=wrapper, run=Run())
        return result.model.state_dict()

    plain, wrapped = weights(None), weights("sam(rho=0)")
    assert all(torch.equal(value, wrapped[name]) for name, value in plain.items())


def test_it_is_named_by_specs():
    assert catalog.build("sam(rho=0.1)", kind=OptimizerWrapper) == SAM(rho=0.1)
    with pytest.raises(UserError, match="sam: rho must be a number of at least 0, got -1"):
        catalog.build("sam(rho=-1)")
