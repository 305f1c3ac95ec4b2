"""What an objective learns beside the model is trained with it, and gone afterwards."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.methods import Callback, Objective
from holdfast.models import load_weights, weights_hash
from holdfast.run import Run
from holdfast.training import fit

HEADS = []


@dataclass(frozen=True, kw_only=True)
class Scaled(Objective):
    """Cross-entropy of logits that a layer of its own has turned."""

    def heads(self, model, x):
        with torch.no_grad():
            return {"turn": nn.Linear(model(x).shape[1], 4)}

    def __call__(self, model, x, y, step):
        HEADS.append(step.heads["turn"].weight.detach().clone())
        return F.cross_entropy(step.heads["turn"](step.seen(model(x))), y)


class KeepsName(Callback):
    """Notes what the model holds while it is trained."""

    names: list[str]

    def on_epoch(self, state):
        self.names = list(state.model.state_dict())


TRAINING = {"epochs": 2, "batch_size": 12, "objective": Scaled(), "optimizer": "sgd(lr=0.1)", "ema": 0.5}


def test_heads_learn_and_are_dropped_with_the_last_step(noise, linear, tmp_path):
    HEADS.clear()
    model, watch = linear(), KeepsName()
    result = fit(model, noise, **TRAINING, callbacks=[watch], val=noise, run=Run(out=tmp_path))
    assert not torch.equal(HEADS[0], HEADS[-1])
    assert "objective_heads.turn.weight" in watch.names
    names = list(linear().state_dict())
    assert list(result.model.state_dict()) == names
    assert list(result.ema_model.state_dict()) == names
    load_weights(linear(), tmp_path / "best.safetensors")


def test_first_weights_of_heads_belong_to_the_seed_alone(noise, linear):
    firsts = []
    for seed, disturbed in ((0, 1), (0, 2), (1, 2)):
        HEADS.clear()
        torch.default_generator.manual_seed(disturbed)
        fit(linear(), noise, **TRAINING, run=Run(seed=seed))
        firsts.append(HEADS[0])
    assert torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[1], firsts[2])


def test_heads_are_gone_after_a_stop_and_go_on_from_where_they_were(noise, linear, tmp_path, monkeypatch):
    settings = TRAINING | {"save_minutes": 0.0}
    whole = fit(linear(), noise, **settings, run=Run(out=tmp_path / "whole"))
    real, calls = Scaled.__call__, [0]

    def interrupted(self, *args):
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Scaled, "__call__", interrupted)
    model = linear()
    with pytest.raises(KeyboardInterrupt):
        fit(model, noise, **settings, run=Run(out=tmp_path / "stopped"))
    assert list(model.state_dict()) == list(linear().state_dict())
    monkeypatch.setattr(Scaled, "__call__", real)
    again = fit(linear(), noise, **settings, run=Run(out=tmp_path / "stopped"))
    assert weights_hash(again.model) == weights_hash(whole.model)
    assert weights_hash(again.ema_model) == weights_hash(whole.ema_model)
