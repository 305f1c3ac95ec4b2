import pytest
import torch
from torch import nn

from holdfast import catalog
from holdfast.errors import UserError
from holdfast.training import SGD, Adam, AdamW, Optimizer


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))


def test_weight_decay_may_spare_biases_and_normalisation():
    groups = SGD(decay="matrices")(net()).param_groups
    decayed = {tuple(p.shape) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {(2, 1, 3, 3), (2, 2)}
    assert [len(group["params"]) for group in SGD()(net()).param_groups] == [6]


@pytest.mark.parametrize("optimizer", [SGD(), SGD(momentum=0), Adam(weight_decay=0.1), AdamW()], ids=str)
def test_every_weight_moves_and_frozen_ones_stay(optimizer):
    model = net()
    model[0].requires_grad_(False)
    before = [p.detach().clone() for p in model.parameters()]
    built = optimizer(model)
    model(torch.randn(4, 1, 3, 3)).square().sum().backward()
    built.step()
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert moved == [False, False, True, True, True, True]


def test_the_fields_reach_pytorch():
    sgd = SGD(lr=0.3, momentum=0.8, nesterov=False, weight_decay=0.01)(net()).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"], sgd["weight_decay"]) == (0.3, 0.8, False, 0.01)
    adam = AdamW(lr=0.3, beta1=0.5, beta2=0.6)(net()).param_groups[0]
    assert (adam["lr"], adam["betas"], adam["weight_decay"]) == (0.3, (0.5, 0.6), 0.05)


def test_they_are_built_from_specs_and_refused_in_one_sentence():
    assert catalog.build("adamw(lr=3e-4)", kind=Optimizer) == AdamW(lr=3e-4)
    with pytest.raises(UserError, match=r"sgd: momentum must be a number in \[0, 1\), got 1"):
        catalog.build("sgd(momentum=1)")
    with pytest.raises(UserError, match=r"sgd: 'learning_rate' is not a hyperparameter"):
        catalog.build("sgd(learning_rate=1)")
