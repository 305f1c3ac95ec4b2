"""Trainings whose model is no classifier: the objective says so, and `fit` goes by its loss alone."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from holdfast.errors import UserError
from holdfast.methods import Callback, Objective
from holdfast.models import read_weights, weights_hash
from holdfast.run import Run
from holdfast.training import Adam, Constant, fit


@dataclass(frozen=True)
class Denoising(Objective):
    """The images back from noisy ones; the column says how strong the noise is."""

    logits: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("strength",)

    def __call__(self, model, x, y, step):
        noise = torch.randn(x.shape, generator=step.rng("noise"))
        return (model(x + step.columns["strength"].view(-1, 1, 1, 1) * noise) - x).square().mean()


class OfTwo(nn.Module):
    """Takes more than images, as denoisers do: a classifier's check would fail on it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        nn.init.constant_(self.layer.weight, 0.1)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x):
        return self.layer(x)


@pytest.fixture
def noisy(noise):
    return noise.with_column("strength", torch.linspace(0, 0.5, len(noise)))


def trained(images, *, val=None, run=None, epochs=3, **more):
    settings = {"epochs": epochs, "batch_size": 16, "optimizer": Adam(lr=0.01), "schedule": Constant(), **more}
    return fit(OfTwo(), images, objective=Denoising(), val=val, run=run or Run(), **settings)


def test_the_loss_falls_and_nothing_is_counted_as_right(noisy):
    history = trained(noisy, val=noisy, epochs=5).history
    assert set(history[0]) == {"epoch", "lr", "train_loss", "val_loss"}
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["val_loss"] < history[0]["val_loss"]


def test_a_classifier_s_objective_still_asks_for_logits(noisy):
    with pytest.raises(UserError, match="must return logits of shape"):
        fit(OfTwo(), noisy, epochs=1, run=Run())


def test_validation_meets_the_same_noise_in_every_epoch(noisy):
    still = trained(noisy, val=noisy, optimizer="sgd(lr=1e-12, momentum=0, nesterov=false, weight_decay=0)").history
    assert len({row["train_loss"] for row in still}) == 3
    assert len({row["val_loss"] for row in still}) == 1


def test_the_validation_loss_is_the_objective_s_with_the_rows_columns(noisy):
    result = trained(noisy, val=noisy.with_column("strength", torch.zeros(len(noisy))), epochs=2)
    x = noisy.x.float() / 255
    with torch.no_grad():
        expected = float((result.model(x) - x).square().mean())
    assert result.history[-1]["val_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_best_weights_are_those_of_least_loss(noisy, tmp_path):
    @dataclass(frozen=True)
    class Spoil(Callback):
        def on_epoch(self, state):
            if state.epoch == 1:
                with torch.no_grad():
                    state.model.layer.bias.fill_(9.0)

    result = trained(noisy, val=noisy, epochs=3, callbacks=[Spoil()], run=Run(out=tmp_path))
    losses = [row["val_loss"] for row in result.history]
    best = read_weights(tmp_path / "best.safetensors")
    assert int(best.metadata["epoch"]) == 1 + losses.index(min(losses))
    assert losses[2] > losses[1], "the spoilt epoch is worse, or the test says nothing"


def test_a_stopped_training_goes_on_to_the_same_bits(noisy, tmp_path):
    @dataclass(frozen=True)
    class Stop(Callback):
        at: ClassVar[list[int]] = [4]

        def __str__(self):
            return "stop"

        def on_step(self, state):
            if state.index in self.at:
                self.at.clear()
                raise KeyboardInterrupt

    run = Run(out=tmp_path, seed=2)
    more = {"val": noisy, "callbacks": [Stop()], "save_minutes": 0.0, "ema": 0.9}
    with pytest.raises(KeyboardInterrupt):
        trained(noisy, run=run, **more)
    resumed = trained(noisy, run=run, **more)
    whole = trained(noisy, run=Run(seed=2), **more)
    assert weights_hash(resumed.model) == weights_hash(whole.model)
    assert weights_hash(resumed.ema_model) == weights_hash(whole.ema_model)
    assert resumed.history == whole.history


def test_what_needs_companions_cannot_be_validated(noisy):
    @dataclass(frozen=True)
    class Beside(Denoising):
        companions: ClassVar[tuple[str, ...]] = ("forget",)

    with pytest.raises(UserError, match="cannot be validated"):
        fit(OfTwo(), noisy, epochs=1, objective=Beside(), companions={"forget": noisy}, val=noisy, run=Run())
