"""Training on a GPU: repeatable to the last bit, resumable, and learning."""

import pytest
import torch

from holdfast.data import load_data
from holdfast.models import build_model, predict
from holdfast.run import Run
from holdfast.training import fit

pytestmark = pytest.mark.cuda
OBJECTIVES = ["cross-entropy", "pgd-at(eps=0.1, step=0.05, steps=3)"]


def trained(objective, out=None, epochs=3):
    run = Run(device="cuda", precision="bf16", out=out)
    train = load_data("digits").train
    model = build_model("convnet", num_classes=10, image_shape=train.shape, run=run)
    arguments = {"epochs": epochs, "batch_size": 64, "objective": objective, "optimizer": "sgd(lr=0.05)"}
    return fit(model, train, ema=0.99, run=run, **arguments).final_model.cpu()


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_trainings_with_one_seed_are_the_same_to_the_last_bit(objective):
    assert same(trained(objective), trained(objective))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_training_ends_like_an_uninterrupted_one(objective, tmp_path, monkeypatch):
    whole = trained(objective, tmp_path / "whole")
    import holdfast.training.loop as loop

    real, calls = loop.write_metrics, []

    def interrupt(*args):
        real(*args)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_metrics", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained(objective, tmp_path / "torn")
    monkeypatch.undo()
    assert same(whole, trained(objective, tmp_path / "torn"))


def test_it_learns():
    model, test = trained("cross-entropy", epochs=8), load_data("digits").test
    assert float((predict(model, test, run=Run(device="cuda")).argmax(1).cpu() == test.y).float().mean()) > 0.9
