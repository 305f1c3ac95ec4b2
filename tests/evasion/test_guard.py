"""What trained guards share: learning, keeping what was learned, and reading it back."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from holdfast.data import load_data
from holdfast.errors import UserError
from holdfast.evasion.guard import Guarded, TrainedGuard, learned, save_guard
from holdfast.models import load_model
from holdfast.run import Run


class Shifted(Guarded):
    def __init__(self, model, guard):
        super().__init__(model, guard)
        self.shift = nn.Parameter(torch.zeros(guard.width))

    def forward(self, x):
        return self.model(x) + self.shift.sum()


@dataclass(frozen=True, kw_only=True)
class Shift(TrainedGuard):
    """Adds the mean brightness to every logit; nothing that anybody should use."""

    id = "shift"
    width: int = 3
    weights: str | None = None

    def untrained(self, model):
        return Shifted(model, self)

    def train(self, model, images, *, run):
        guarded = self.untrained(model)
        with torch.no_grad():
            guarded.shift.fill_(images.x.float().mean())
        return guarded

    def __post_init__(self):
        pass

    def __str__(self):
        return f"shift(width={self.width})"


@pytest.fixture(scope="module")
def model():
    return load_model("zoo:digits-convnet")


def test_what_was_learned_is_read_back_without_the_model(model, tmp_path):
    path = tmp_path / "guard.safetensors"
    images = load_data("digits").train
    guarded = Shift().train(model, images, run=Run())
    assert set(learned(guarded)) == {"shift"}
    save_guard(guarded, path)
    x = torch.rand(4, *images.shape)
    again = Shift(weights=str(path))(model)
    assert again(x).equal(guarded(x))
    assert not again(x).equal(model(x))


def test_a_guard_that_has_learned_nothing_is_refused(model):
    with pytest.raises(UserError, match="shift: weights must name the file that `holdfast harden shift` has written"):
        Shift()(model)


def test_what_another_guard_has_learned_is_refused(model, tmp_path):
    path = tmp_path / "guard.safetensors"
    save_guard(Shift(width=4).untrained(model), path)
    with pytest.raises(UserError, match=r"shift should be \(3,\), and is \(4,\)"):
        Shift(weights=str(path))(model)


def test_a_missing_file_is_said(model, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Shift(weights=str(tmp_path / "none.safetensors"))(model)
