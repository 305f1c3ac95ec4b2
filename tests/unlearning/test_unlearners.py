"""What `retrain` and `ft` do to what a model knows."""

import pytest
import torch

from holdfast.errors import UserError
from holdfast.models import build_model, extract
from holdfast.run import Run
from holdfast.training import SGD, Constant
from holdfast.unlearning import FT, Retrain, divergences, forgetting

QUICK = {"epochs": 4, "batch_size": 64, "optimizer": SGD(lr=0.05, nesterov=False), "crop": None, "flip": None}


class Untouchable:
    """Stands for a forget set that must not even be looked at."""

    def __getattribute__(self, name):
        raise AssertionError(f"the forget set was touched: {name}")


def measured(model, split, run):
    return forgetting(*(extract(model, images, run=run) for images in split))


def test_a_retrained_model_never_saw_the_forgotten_class(original, split):
    run = Run(seed=1)
    retrained = Retrain(**QUICK, schedule=Constant())(original, Untouchable(), split[1], run=run)
    before, after = measured(original, split, run), measured(retrained, split, run)
    assert before.ua < 0.05
    assert after.ua == 1
    assert after.ta > 0.9


def test_retraining_takes_nothing_from_the_given_weights(original, split):
    method = Retrain(**{**QUICK, "epochs": 1})
    other = build_model("mlp", num_classes=10, image_shape=split[0].shape, run=Run(seed=77))
    a, b = (method(model, split[0], split[1], run=Run()) for model in (original, other))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_fine_tuning_starts_from_the_given_weights(original, split):
    run = Run(seed=1)
    method = FT(**{**QUICK, "epochs": 1, "optimizer": SGD(lr=1e-6, momentum=0, nesterov=False)})
    tuned = method(original, Untouchable(), split[1], run=run)
    moved = max(
        float((p - q).detach().abs().max()) for p, q in zip(tuned.parameters(), original.parameters(), strict=True)
    )
    assert 0 < moved < 1e-3


def test_fine_tuning_forgets_less_than_retraining_but_more_than_nothing(original, split):
    run = Run(seed=1)
    retrained = Retrain(**QUICK)(original, split[0], split[1], run=run)
    tuned = FT(**QUICK)(original, split[0], split[1], run=run)
    reference, kept, started = (extract(m, split[0], run=run).logits for m in (retrained, tuned, original))
    assert divergences(reference, kept)[1] < divergences(reference, started)[1]
    assert measured(tuned, split, run).ua < measured(retrained, split, run).ua == 1


def test_another_seed_gives_another_retrained_model(original, split):
    method = Retrain(**{**QUICK, "epochs": 1})
    a, b = (method(original, split[0], split[1], run=Run(seed=s)) for s in (0, 1))
    assert not all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("method", [Retrain(epochs=1), FT(epochs=1)])
def test_nothing_to_retain_is_refused(original, split, method):
    with pytest.raises(UserError, match="no images to train on"):
        method(original, split[0], split[1].select(slice(0, 0)), run=Run())


def test_the_defaults_are_those_of_the_paper():
    retrain, ft = Retrain(), FT()
    assert (retrain.epochs, retrain.batch_size, retrain.optimizer.lr) == (182, 256, 0.1)
    assert [retrain.schedule.factor(e / 182) for e in (90.5, 91.5, 135.5, 137)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert (ft.epochs, ft.batch_size, ft.optimizer.lr, ft.optimizer.momentum, ft.optimizer.nesterov) == (
        10,
        256,
        0.01,
        0.9,
        False,
    )
    assert ft.optimizer.weight_decay == retrain.optimizer.weight_decay == 5e-4
