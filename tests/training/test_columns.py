"""Objectives may read columns of the training set, and remember things from step to step."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from holdfast.errors import UserError
from holdfast.methods import Objective
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.training import fit

SEEN = []


@dataclass(frozen=True, kw_only=True)
class Paired(Objective):
    """Weighs a sample by its column, and by how many steps there were before."""

    columns: ClassVar[tuple[str, ...]] = ("place",)

    def __call__(self, model, x, y, step):
        SEEN.append((x.clone(), step.columns["place"].clone()))
        step.memory["count"] = step.memory.get("count", torch.zeros(())) + 1
        losses = F.cross_entropy(step.seen(model(x)), y, reduction="none")
        return (losses * step.columns["place"] / (48 * step.memory["count"])).mean()


TRAINING = {"epochs": 3, "batch_size": 10, "objective": Paired(), "optimizer": "sgd(lr=0.05)"}


def test_each_batch_comes_with_its_own_rows(noise, linear):
    SEEN.clear()
    fit(linear(), noise.with_column("place", torch.arange(48)), **TRAINING, run=Run())
    assert len(SEEN) == 15
    for x, place in SEEN:
        assert torch.equal(x, noise.x[place] / 255)
    assert sorted(torch.cat([place for _, place in SEEN[:5]]).tolist()) == list(range(48))


def test_a_missing_column_is_named(noise, linear):
    with pytest.raises(UserError, match="the training set 'noise' needs a column 'place'"):
        fit(linear(), noise, **TRAINING, run=Run())


def test_what_is_remembered_survives_a_stop(noise, linear, tmp_path, monkeypatch):
    images = noise.with_column("place", torch.arange(48))
    whole = fit(linear(), images, **TRAINING, run=Run(out=tmp_path / "whole")).model
    real, calls = Paired.__call__, [0]

    def interrupted(self, *args):
        calls[0] += 1
        if calls[0] == 12:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Paired, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(linear(), images, **TRAINING, run=Run(out=tmp_path / "stopped"))
    monkeypatch.setattr(Paired, "__call__", real)
    resumed = fit(linear(), images, **TRAINING, run=Run(out=tmp_path / "stopped")).model
    assert weights_hash(resumed) == weights_hash(whole)


def test_a_training_with_another_column_is_another_training(noise, linear, tmp_path):
    fit(linear(), noise.with_column("place", torch.arange(48)), **TRAINING, run=Run(out=tmp_path))
    with pytest.raises(UserError, match="column place"):
        fit(linear(), noise.with_column("place", torch.arange(48).flip(0)), **TRAINING, run=Run(out=tmp_path))
