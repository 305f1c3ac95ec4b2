import copy
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.errors import UserError
from holdfast.methods import Callback, Objective
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.training import SGD, Constant, CrossEntropy, OneCycle, fit
from holdfast.training.batches import Plan


def by_hand(model, images, *, epochs, batch_size, lr, run):
    """The same training as `fit`'s, in a dozen lines of plain PyTorch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    x, y = images.x.float() / 255, images.y
    for epoch in range(epochs):
        for indices in Plan(count=len(images), batch_size=batch_size).batches(epoch, run):
            optimizer.zero_grad()
            F.cross_entropy(model(x[indices]), y[indices]).backward()
            optimizer.step()
    return model


def test_it_takes_the_steps_of_a_plain_loop(noise, convolutional):
    run = Run(seed=3)
    expected = by_hand(convolutional(), noise, epochs=2, batch_size=20, lr=0.05, run=run)
    got = fit(
        convolutional(), noise, epochs=2, batch_size=20, optimizer=SGD(lr=0.05), schedule=Constant(), run=run
    ).model
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(got.state_dict()[name].float(), value.float(), atol=2e-6, rtol=1e-4)


def test_digits_are_learnt_in_seconds(digits, convolutional):
    result = fit(
        convolutional(classes=10), digits.train, epochs=6, batch_size=32, val=digits.val, ema=0.9, run=Run(seed=1)
    )
    assert result.history[-1]["val_accuracy"] > 0.8
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"] / 2
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5, 6]


def test_bf16_trains_float32_weights(digits, convolutional):
    result = fit(convolutional(classes=10), digits.train, epochs=4, batch_size=32, run=Run(precision="bf16"))
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    assert result.history[-1]["train_accuracy"] > 0.6


def test_two_trainings_with_one_seed_are_the_same_and_with_another_are_not(noise, convolutional):
    def weights(seed):
        run = Run(seed=seed)
        model = convolutional(dropout=0.2)
        return weights_hash(fit(model, noise, epochs=2, transforms=["crop(padding=1)"], run=run).model)

    assert weights(0) == weights(0) != weights(1)


def test_dropout_does_not_touch_the_global_generator(noise, convolutional):
    model = convolutional(dropout=0.5)
    before = torch.get_rng_state()
    fit(model, noise, epochs=1, run=Run())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 4), (8, 2)])
def test_accumulated_batches_are_one_large_batch(noise, linear, batch_size, accumulate):
    whole = fit(linear(), noise, epochs=2, batch_size=16, run=Run())
    parts = fit(linear(), noise, epochs=2, batch_size=batch_size, accumulate=accumulate, run=Run())
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert whole.history[1]["train_loss"] == pytest.approx(parts.history[1]["train_loss"], rel=1e-5)


def test_a_small_last_batch_counts_by_its_size_when_accumulating(noise, linear):
    images = noise.select(slice(0, 22))  # 16 + 6, and in parts 8 + 8 + 6
    whole = fit(linear(), images, epochs=1, batch_size=16, run=Run())
    parts = fit(linear(), images, epochs=1, batch_size=4, accumulate=4, run=Run())  # the rest is 4 + 2
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_average_follows_the_weights(noise, linear):
    run = Run()
    seen = []

    @dataclass(frozen=True)
    class Watch(Callback):
        def on_step(self, state):
            seen.append([p.detach().clone() for p in state.model.parameters()])

    start = [p.detach().clone() for p in linear().parameters()]
    result = fit(linear(), noise, epochs=2, batch_size=16, ema=0.5, callbacks=[Watch()], run=run)
    expected = start
    for step, weights in enumerate(seen):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, weights, strict=True)]
    for one, other in zip(result.ema_model.parameters(), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert result.final_model is result.ema_model


def test_callbacks_see_every_hook_in_order_and_may_stop(noise, linear):
    calls = []

    @dataclass(frozen=True)
    class Watch(Callback):
        def on_start(self, state):
            calls.append("start")

        def on_step(self, state):
            calls.append(state.index)

        def on_epoch(self, state):
            calls.append("epoch")
            state.metrics["mine"] = 7.0
            state.stop = state.epoch == 1

        def on_end(self, state):
            calls.append("end")

    result = fit(linear(), noise, epochs=5, batch_size=24, callbacks=[Watch()], run=Run())
    assert calls == ["start", 1, 2, "epoch", 3, 4, "epoch", "end"]
    assert [row["mine"] for row in result.history] == [7.0, 7.0]


def test_the_schedule_sets_the_rate_of_every_step(noise, linear):
    rates = []

    @dataclass(frozen=True)
    class Watch(Callback):
        def on_step(self, state):
            rates.append(state.optimizer.param_groups[0]["lr"])

    schedule = OneCycle(warmup=0.5)
    settings = {"epochs": 2, "batch_size": 12, "optimizer": SGD(lr=0.4), "schedule": schedule, "run": Run()}
    fit(linear(), noise, callbacks=[Watch()], **settings)
    assert rates == [0.4 * schedule(step, 8) for step in range(8)]


def test_transforms_on_bytes_and_on_floats_may_follow_each_other(noise, linear):
    given = []

    @dataclass(frozen=True)
    class Watch(CrossEntropy):
        def __call__(self, model, x, y, step):
            given.append(x)
            return super().__call__(model, x, y, step)

    transforms = ["crop(padding=2)", "flip", "cutout(size=3)"]
    fit(linear(), noise, epochs=1, objective=Watch(), transforms=transforms, run=Run())
    assert given[0].dtype == torch.float32
    assert given[0].is_contiguous(memory_format=torch.channels_last)
    assert given[0].min() >= 0
    assert given[0].max() <= 1


def test_a_loss_that_is_no_number_stops_with_the_place_and_a_remedy(noise, linear):
    @dataclass(frozen=True)
    class Explodes(Objective):
        def __call__(self, model, x, y, step):
            return F.cross_entropy(model(x), y) * (math.nan if step.index == 4 else 1)

    with pytest.raises(UserError, match=r"loss became nan at epoch 2, step 5 of 9.*Lower the learning rate"):
        fit(linear(), noise, epochs=3, batch_size=16, objective=Explodes(), run=Run())


def test_the_model_comes_back_in_evaluation_mode_with_frozen_weights_still_frozen(noise, linear):
    model = linear()
    model[1].requires_grad_(False)
    before = copy.deepcopy(model[1].state_dict())
    result = fit(model, noise, epochs=1, run=Run())
    assert result.model is model
    assert not model.training
    assert torch.equal(model[1].weight, before["weight"])
    assert not model[1].weight.requires_grad


def test_compiled_models_are_trained_under_their_own_names(noise, linear, monkeypatch):
    compiled = []

    def wrap(model):
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", wrap)
    result = fit(linear(), noise, epochs=1, compile=True, run=Run())
    assert compiled == [result.model]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, r"epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, r"batch_size must be a whole number of at least 1, got 2.5"),
        ({"ema": 1.0}, r"ema must be a decay in \[0, 1\)"),
        ({"optimizer": "sgdd"}, r"optimizer 'sgdd' is unknown. Did you mean 'sgd'"),
        ({"optimizer": "sgd(lr=-1)"}, r"sgd: lr must be a number above 0, got -1"),
        ({"schedule": "sgd"}, r"'sgd' is of kind optimizer, but a method of kind schedule is needed"),
        ({"objective": "crop"}, r"'crop' is of kind batch-transform"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_one_sentence(noise, linear, changes, message):
    with pytest.raises(UserError, match=message):
        fit(linear(), noise, **({"epochs": 1, "run": Run()} | changes))


def test_models_and_images_that_do_not_fit_are_refused(noise, linear):
    with pytest.raises(UserError, match="3 logits, but noise has 4 classes"):
        fit(linear(classes=3), noise, epochs=1, run=Run())
    with pytest.raises(UserError, match="no images to train on"):
        fit(linear(), noise.select(slice(0)), epochs=1, run=Run())
    with pytest.raises(UserError, match="none of its parameters requires a gradient"):
        fit(linear().requires_grad_(False), noise, epochs=1, run=Run())
    with pytest.raises(UserError, match="must return logits"):
        fit(nn.Identity(), noise, epochs=1, run=Run())
