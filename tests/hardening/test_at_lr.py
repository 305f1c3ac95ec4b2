import copy
import os
import signal
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast import catalog
from holdfast.data import Images, load_data
from holdfast.errors import UserError
from holdfast.evasion.layer_errors import layer_errors
from holdfast.evasion.pgd import PGD
from holdfast.hardening import ATLR, PGDAT
from holdfast.methods import Callback
from holdfast.models import build_model, tap, weights_hash
from holdfast.run import Run
from holdfast.training import Step, fit

ATTACK = {"eps": 0.1, "step": 0.1, "steps": 1}


def net(norm=True):
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(384, 12), nn.ReLU(), nn.Linear(12, 4))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.2)
    return model


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(1)
    return torch.rand(10, 1, 8, 8, generator=rng), torch.randint(0, 4, (10,), generator=rng)


def step_of(model, **place):
    return Step(run=Run(seed=2), model=model, **place)


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("adversarial", [1.0, 0.4])
def test_without_weight_it_is_pgd_at_bit_for_bit(batch, adversarial):
    settings = {**ATTACK, "adversarial": adversarial, "label_smoothing": 0.1}
    losses, slopes, after = [], [], []
    for method in (PGDAT(**settings), ATLR(**settings, gamma=0)):
        model = net()
        losses.append(method(model, *batch, step_of(model)))
        slopes.append(gradients(losses[-1], model))
        after.append(weights_hash(model))
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))
    assert after[0] == after[1]


def test_the_loss_is_that_of_pgd_at_and_how_far_the_layers_move(batch):
    x, y = batch
    model, method = net(norm=False), ATLR(**ATTACK, gamma=0.7, layers=("2", "5"))
    x_adv = method.perturb(model, x, y, step_of(model))
    outputs = []
    for version in (x, x_adv):
        with tap(model, ["2", "5"]) as seen:
            model(version)
        outputs.append(dict(seen))
    term = sum((outputs[0][name] - outputs[1][name]).norm() / outputs[0][name].norm() for name in ("2", "5"))
    expected = F.cross_entropy(model(x_adv), y) + 0.7 * term
    loss = method(model, x, y, step_of(model))
    torch.testing.assert_close(loss, expected)
    # The gradient flows through the clean outputs as well as through the attacked ones.
    cut = sum((outputs[0][n].detach() - outputs[1][n]).norm() / outputs[0][n].detach().norm() for n in ("2", "5"))
    of_cut, of_term = (torch.autograd.grad(v, model[0].weight, retain_graph=True)[0] for v in (cut, term))
    assert not torch.allclose(of_cut, of_term, rtol=0.1)
    torch.testing.assert_close(gradients(loss, model), gradients(expected, model))


def test_clean_loss_takes_its_share(batch):
    def value(**changes):
        model = net(norm=False)
        return ATLR(**ATTACK, layers=("2",), **changes)(model, *batch, step_of(model)).item()

    clean = F.cross_entropy(net(norm=False)(batch[0]), batch[1]).item()
    adversarial = PGDAT(**ATTACK)(net(norm=False), *batch, step_of(None)).item()
    term = value() - adversarial
    assert term > 0
    assert value(adversarial=0.25) == pytest.approx(0.75 * clean + 0.25 * adversarial + term, rel=1e-5)


def test_running_statistics_are_those_of_pgd_at(batch):
    after = []
    for method in (PGDAT(**ATTACK), ATLR(**ATTACK)):
        model = net()
        method(model, *batch, step_of(model))
        after.append(model[1].running_mean.clone())
        assert model[1].num_batches_tracked == 1
    assert torch.equal(*after)


def test_without_a_perturbation_the_loss_and_its_gradient_are_finite_and_plain(batch):
    model = net(norm=False)
    loss = ATLR(eps=0, steps=0)(model, *batch, step_of(model))
    torch.testing.assert_close(loss, F.cross_entropy(model(batch[0]), batch[1]))
    torch.testing.assert_close(gradients(loss, model), gradients(F.cross_entropy(model(batch[0]), batch[1]), model))


def test_measured_layers_are_those_that_move_most_in_evaluation_mode(batch):
    model = net()
    model[1].running_var.fill_(4)
    step, method = step_of(model), ATLR(**ATTACK)
    x_adv = method.perturb(model, *batch, step)
    [found] = layer_errors(copy.deepcopy(model), batch[0], {"x": x_adv}, run=Run())
    errors = found.errors["relative"]
    mode, before = [m.training for m in model.modules()], weights_hash(model)
    assert list(method.vulnerable(model, batch[0], x_adv, step)) == [max(errors, key=errors.get)]
    assert list(ATLR(top=2).vulnerable(model, batch[0], x_adv, step_of(model))) == ["2", "5"]
    assert [m.training for m in model.modules()] == mode
    assert weights_hash(model) == before


@pytest.mark.parametrize(("refresh", "chosen"), [("epoch", [0, 1]), ("once", [0])])
def test_layers_are_chosen_in_every_epoch_or_once_and_remembered(batch, refresh, chosen, monkeypatch):
    epochs, model, memory = [], net(), {}

    def counted(*args, run, **named):
        epochs.append(epoch)
        return layer_errors(*args, run=run, **named)

    monkeypatch.setattr("holdfast.hardening.at_lr.layer_errors", counted)
    for epoch in (0, 0, 1, 1):
        ATLR(**ATTACK, refresh=refresh)(model, *batch, step_of(model, epoch=epoch, memory=memory))
    assert epochs == chosen
    assert memory["at-lr"]["epoch"] == chosen[-1]


def test_nothing_is_left_on_the_model(batch):
    model = net()
    ATLR(**ATTACK)(model, *batch, step_of(model)).backward()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is not None for p in model.parameters())


@dataclass(frozen=True)
class PressesCtrlC(Callback):
    """Sends SIGINT to its own process after a step."""

    step: int

    def on_step(self, state):
        if state.index == self.step and not (state.run.out / "pressed").exists():
            (state.run.out / "pressed").touch()
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [2, 4])  # within an epoch, and at its end
def test_a_resumed_training_holds_the_same_layers_still(tmp_path, step):
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (48, 1, 8, 8), dtype=torch.uint8, generator=rng)
    images = Images(x=x, y=torch.arange(48) % 4, classes=tuple("abcd"))

    def run(name):
        objective = ATLR(**ATTACK, gamma=1.0)
        named = {"epochs": 2, "batch_size": 12, "callbacks": [PressesCtrlC(step)], "optimizer": "sgd(lr=0.05)"}
        return fit(net(), images, objective=objective, run=Run(out=tmp_path / name), **named)

    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "pressed").touch()
    (tmp_path / "stopped").mkdir()
    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    memory = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)["memory"]
    assert memory["at-lr"]["epoch"] == 0
    again = run("stopped")
    assert weights_hash(again.model) == weights_hash(whole.model)
    assert again.history == whole.history


def test_it_stills_the_layers_of_a_network_on_real_digits():
    digits, attack = load_data("digits"), PGD(eps=0.2, steps=5)
    test = digits.test.select(slice(0, 150))

    def trained(objective):
        run = Run(seed=1)
        model = build_model("convnet(width=8)", num_classes=10, image_shape=(1, 8, 8), run=run)
        fit(model, digits.train, epochs=5, batch_size=64, objective=objective, optimizer="sgd(lr=0.05)", run=run)
        [found] = layer_errors(model, test.x, {"pgd": attack(model, test.x, test.y, run=run)}, run=run)
        return max(found.errors["relative"].values())

    settings = "eps=0.2, step=0.2, steps=1"
    assert trained(f"at-lr({settings}, gamma=1)") < 0.9 * trained(f"pgd-at({settings})")


def test_an_unknown_layer_is_refused_with_a_suggestion(batch):
    model = build_model("convnet(width=4)", num_classes=4, image_shape=(1, 8, 8), run=Run())
    with pytest.raises(UserError, match=r"at-lr: the layer 'features.22' is unknown. Did you mean 'features.2'\?"):
        ATLR(**ATTACK, layers=("features.22",))(model, *batch, step_of(model))


def test_a_compiled_model_is_refused(batch):
    model = net()
    with pytest.raises(UserError, match="at-lr: a compiled model does not show its layers"):
        ATLR(**ATTACK)(model, *batch, step_of(torch.compile(model)))


def test_a_model_without_activations_is_refused(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(UserError, match="none of the model's activations can be seen"):
        ATLR(**ATTACK)(model, *batch, step_of(model))


def test_messages_name_the_method():
    with pytest.raises(UserError, match=r"at-lr: eps must be a number in \[0, 1\] for norm 'linf', got 8. .*8/255"):
        catalog.build("at-lr(eps=8)")
    with pytest.raises(UserError, match="at-lr: gamma must be a number of at least 0, got -1"):
        catalog.build("at-lr(gamma=-1)")
    named = catalog.build("at-lr(layers=['layer1.0.relu#2'])")
    assert catalog.build(str(named)) == named
