import copy
import dataclasses
import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from holdfast import catalog
from holdfast.audit import audit
from holdfast.audit.profiles import PROFILES
from holdfast.cli import app
from holdfast.data import LongTail, load_data
from holdfast.errors import UserError
from holdfast.evasion.guard import learned, save_guard
from holdfast.models import build_model, classifier_head, extract, frozen, load_model, predict, weights_hash
from holdfast.ood import ABF, fit_detectors, score_detectors
from holdfast.run import Run
from holdfast.training import SGD, LogitAdjustment, fit

METHOD = ABF(epochs=4, lr=1e-2, batch_size=64, transforms=())


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def tail(data):
    return LongTail(rho=30)(data.train, run=Run())


@pytest.fixture(scope="module")
def model(tail):
    """Trained on the tail, so that rare classes are seldom predicted."""
    made = build_model("convnet", num_classes=10, image_shape=(1, 8, 8), run=Run())
    return fit(made, tail, epochs=10, batch_size=32, optimizer=SGD(lr=0.05), run=Run()).model


@pytest.fixture(scope="module")
def branches(model, tail):
    return METHOD.train(model, tail, run=Run())


def test_the_first_branch_is_the_model_to_the_last_bit(model, branches, data):
    assert weights_hash(branches.detection) == weights_hash(model)
    assert torch.equal(predict(branches.detection, data.test, run=Run()), predict(model, data.test, run=Run()))


def test_transforms_may_be_named_with_and_without_quotation_marks():
    bare, quoted = (catalog.build(f"abf(transforms=[{t}, crop])") for t in ("long-tail(rho=20)", "'long-tail(rho=20)'"))
    assert bare == quoted == ABF(transforms=("long-tail(rho=20)", "crop"))
    assert catalog.build(str(bare)) == bare


def test_detectors_ask_the_first_branch(model, branches, data):
    scores = []
    for network in (model, branches):
        fitted = fit_detectors(["msp", "knn", "gram"], network, data.train, run=Run())
        scores.append(score_detectors(fitted, network, data.test, run=Run()))
    for name, expected in scores[0].items():
        assert torch.equal(scores[1][name], expected), name


def test_the_audit_asks_the_first_branch_what_is_strange_and_the_second_for_classes(model, branches, data):
    tiny = dataclasses.replace(PROFILES["quick"], test_images=100, train_images=200, ood_images=50, resamples=50)
    found = {}
    for name, network in (("first", model), ("both", branches)):
        result = audit(network, data, profile=tiny, run=Run(), only=["ood", "accuracy"])
        found[name] = {f.check: {m.name: m.value for m in f.metrics} for f in result.findings}
        asked = result.finding("ood").settings.get("asked")
        assert (asked is not None) == (name == "both")
    assert found["both"]["ood"] == found["first"]["ood"]
    assert found["both"]["accuracy"] != found["first"]["accuracy"]


def test_branches_share_all_but_batch_norms_and_the_last_layer(model, branches):
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert len(branches.names) == len(norms) + 1
    assert set(norms) < set(branches.names)
    own = {name for name in branches.state_dict() if not name.startswith("model.")}
    assert set(learned(branches)) == own
    assert not any(tensor.ndim == 4 for tensor in learned(branches).values()), "a convolution is stored twice"
    for module, name in zip(branches.branch, branches.names, strict=True):
        for key, tensor in module.state_dict().items():
            changed = not torch.equal(tensor, model.get_submodule(name).state_dict()[key])
            assert changed, f"{name}.{key} has learned nothing"


def test_before_it_learns_the_second_branch_is_the_first(model, data):
    untrained = METHOD.untrained(model)
    assert torch.equal(predict(untrained, data.test, run=Run()), predict(model, data.test, run=Run()))


def test_the_second_branch_knows_rare_classes_better(model, branches, data):
    rare = data.test.select(data.test.y >= 7)
    before, after = ((predict(net, rare, run=Run()).argmax(1) == rare.y).float().mean() for net in (model, branches))
    assert after > before + 0.05


def test_the_second_branch_is_a_network_with_these_layers_in_place(model, branches, data):
    whole = copy.deepcopy(model)
    for name, module in zip(branches.names, branches.branch, strict=True):
        whole.get_submodule(name).load_state_dict(module.state_dict())
    assert torch.equal(predict(whole, data.test, run=Run()), predict(branches, data.test, run=Run()))
    x = data.test.x[:2]
    head = classifier_head(branches, x)
    assert head is branches.branch[-1], "detectors that read the last layer must see the one that answers"
    features = extract(branches, data.test.select(slice(0, 20)), run=Run())
    torch.testing.assert_close(features.penultimate @ head.weight.T + head.bias, features.logits)


def test_training_mode_reaches_the_second_branch_alone(model):
    untrained = METHOD.untrained(model).train()
    before = weights_hash(untrained.detection)
    untrained(torch.rand(16, 1, 8, 8))
    assert weights_hash(untrained.detection) == before
    assert not any(module.training for module in untrained.model.modules())
    assert any(int(m.num_batches_tracked) > 0 for m in untrained.branch if isinstance(m, nn.BatchNorm2d))
    with frozen(untrained):
        assert not any(module.training for module in untrained.modules())
    assert untrained.training
    assert all(module.training for module in untrained.branch)


def test_layers_are_back_in_place_after_a_failed_pass(model):
    untrained = METHOD.untrained(model)
    with pytest.raises(UserError, match="channels"):
        untrained(torch.rand(2, 7, 8, 8))
    assert weights_hash(untrained.detection) == weights_hash(model)
    assert classifier_head(untrained.detection) is untrained.model.get_submodule(untrained.names[-1])


def test_the_branch_is_read_back_without_the_model(model, branches, data, tmp_path):
    path = tmp_path / "guard.safetensors"
    save_guard(branches, path)
    again = ABF(weights=str(path))(model)
    assert torch.equal(predict(again, data.test, run=Run()), predict(branches, data.test, run=Run()))


def test_transforms_of_the_set_and_of_batches_may_be_given(model, data):
    method = ABF(epochs=1, transforms=("long-tail(rho=50)", "crop(padding=1)"))
    assert method.train(model, data.train, run=Run()).detection is not None
    with pytest.raises(UserError, match="abf: 'pgd' is of kind attack"):
        ABF(transforms=("pgd",))


def test_a_model_without_a_linear_end_is_refused(tail):
    with pytest.raises(UserError, match="abf: the model must end in a linear layer"):
        METHOD.train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh()), tail, run=Run())


def test_a_stopped_training_goes_on_to_the_same_end(model, tail, branches, tmp_path, monkeypatch):
    real, calls = LogitAdjustment.__call__, [0]

    def interrupted(self, *args):
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(LogitAdjustment, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        METHOD.train(model, tail, run=Run(out=tmp_path))
    monkeypatch.setattr(LogitAdjustment, "__call__", real)
    assert weights_hash(METHOD.train(model, tail, run=Run(out=tmp_path))) == weights_hash(branches)


def test_the_zoo_s_residual_network_has_its_norms_swapped_everywhere():
    model = load_model("zoo:cifar10-resnet20")
    untrained = ABF().untrained(model)
    assert len(untrained.names) == 19 + 1
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(untrained(x), model(x))


def test_harden_writes_the_branch_and_says_how_to_use_it(tmp_path):
    spec, out = "abf(epochs=1, transforms=[long-tail])", tmp_path / "abf"
    taken = ["--model", "zoo:digits-convnet", "--data", "digits", "-n", "200", "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, ["harden", spec, *taken, "--json"])
    assert result.exit_code == 0, result.output
    use = json.loads(result.stdout)["guard"]
    assert catalog.build(use).weights == str(out / "guard.safetensors")
    assert catalog.build(use)(load_model("zoo:digits-convnet")).detection is not None
