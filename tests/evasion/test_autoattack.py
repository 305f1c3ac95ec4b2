import json
import warnings

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from holdfast.data import load_data
from holdfast.data.images import to_float
from holdfast.errors import UserError
from holdfast.evasion import APGD, FAB, AutoAttack, Square
from holdfast.evasion import campaign as campaigns
from holdfast.evasion.autoattack import Unreliable
from holdfast.evasion.campaign import campaign
from holdfast.evasion.losses import best_other
from holdfast.evasion.oracle import Oracle
from holdfast.models import load_model
from holdfast.run import Run

SMALL = {"eps": 0.06, "steps": 6, "queries": 20}


@pytest.fixture(scope="module")
def setting():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 24), nn.ReLU(), nn.Linear(24, 6))
    for weight in (model[1].weight, model[3].weight):
        nn.init.normal_(weight, generator=generator)
    x = torch.rand(24, 3, 6, 6, generator=generator)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::8] = (y[::8] + 1) % 6
    return model, x, y


@pytest.fixture(scope="module")
def digits():
    images = load_data("digits", run=Run()).test.select(slice(0, 90))
    return load_model("zoo:digits-convnet"), images


def test_the_standard_version_has_the_members_of_the_paper():
    members = AutoAttack().members(10)
    assert list(members) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert members["apgd-ce"] == APGD(steps=100)
    assert members["apgd-t"] == APGD(steps=100, loss="dlr", targets=9)
    assert members["fab-t"] == FAB(eps=8 / 255, steps=100, targets=9)
    assert members["square"] == Square(queries=5000, p_init=0.8, rescale=False)
    sparse = AutoAttack(norm="l1", eps=12).members(10)
    assert (sparse["apgd-ce"].restarts, sparse["apgd-t"].targets, sparse["fab-t"].targets) == (5, 5, 9)
    plus = AutoAttack(version="plus").members(10)
    assert list(plus) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert [plus[name].restarts for name in ("apgd-ce", "apgd-dlr", "fab")] == [5, 5, 5]
    rand = AutoAttack(version="rand").members(10)
    assert [(name, m.loss, m.eot) for name, m in rand.items()] == [("apgd-ce", "ce", 20), ("apgd-dlr", "dlr", 20)]


@pytest.mark.parametrize(("norm", "version"), [("linf", "standard"), ("l2", "plus")])
def test_it_finds_exactly_what_its_members_find_together(setting, norm, version):
    model, x, y = setting
    attack = AutoAttack(**{**SMALL, "eps": 0.06 if norm == "linf" else 0.4}, norm=norm, version=version)
    outcome = attack.run(model, x, y, run=Run(seed=2))
    alone = [member.run(model, x, y, run=Run(seed=2)).success for member in attack.members(6).values()]
    assert torch.equal(outcome.success, torch.stack(alone).any(0))
    assert 0 < outcome.robust_accuracy <= min(1 - s.double().mean() for s in alone)
    earliest = torch.stack(alone).int().argmax(0)
    fell = outcome.success & outcome.correct
    assert torch.equal(outcome.fell[fell], earliest[fell])
    assert (outcome.fell[~fell] == -1).all()


def test_the_stages_tell_what_happened(setting):
    model, x, y = setting
    outcome = AutoAttack(**SMALL).run(model, x, y, run=Run())
    accuracies = [outcome.clean_accuracy, *(stage.robust_accuracy for stage in outcome.stages)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[1]
    assert accuracies[-1] == pytest.approx(outcome.robust_accuracy)
    assert [stage.attacked for stage in outcome.stages] == [round(24 * a) for a in accuracies[:-1]]
    assert all(stage.seconds > 0 for stage in outcome.stages)
    assert outcome.stages[2].attack == "fab(eps=0.06, steps=6, targets=9)"


def test_only_survivors_are_attacked_and_all_that_is_spent_is_counted(setting):
    model, x, y = setting
    attack = AutoAttack(**SMALL)
    outcome = attack.run(model, x, y, run=Run())
    standing, spent = torch.ones(24, dtype=torch.bool), torch.zeros(24, dtype=torch.int64)
    for member in attack.members(6).values():
        alone = member.run(model, x, y, run=Run())
        spent[standing] += alone.queries[standing]
        standing &= ~alone.success
    assert torch.equal(outcome.queries, spent)


def test_who_stands_is_returned_where_it_came_nearest_to_an_error(setting):
    model, x, y = setting
    attack = AutoAttack(**{**SMALL, "eps": 0.01})
    outcome = attack.run(model, x, y, run=Run())
    stands = ~outcome.success
    assert stands.sum() > 5

    def lead(logits):
        return (logits.gather(1, y[:, None]).squeeze(1) - best_other(logits, y))[stands]

    leads = torch.stack([lead(m.run(model, x, y, run=Run()).logits) for m in attack.members(6).values()])
    assert torch.allclose(lead(outcome.logits), leads.amin(0))
    with torch.no_grad():
        assert torch.allclose(model(outcome.x_adv), outcome.logits, atol=1e-5)


def heard(model, x, y, **fields):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = AutoAttack(**{**SMALL, **fields}).run(model, x, y, run=Run())
    told = [str(w.message).removeprefix("autoattack: ") for w in caught if w.category is Unreliable]
    assert told == list(outcome.notes)
    return " ".join(told)


class Noisy(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x + 0.05 * torch.randn_like(x))


class Flat(nn.Module):
    """Quantised inputs: the gradient is zero everywhere."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model((x * 32).round() / 32)


def test_reasons_for_doubt_are_noted(setting):
    model, x, y = setting
    assert heard(model, x, y) == ""
    assert "answers at random; take version='rand'" in heard(Noisy(model), x, y)
    assert heard(Noisy(model), x, y, version="rand", eot=3) == ""
    assert "this one does not" in heard(model, x, y, version="rand", eot=1)
    assert "gives probabilities" in heard(nn.Sequential(model, nn.Softmax(1)), x, y)
    flat = heard(Flat(model), x, y, queries=100)
    assert "gradient is exactly zero" in flat
    assert "Square, without gradients, broke" in flat


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_models_of_few_classes_are_attacked_by_the_margin(classes, version):
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    nn.init.normal_(model[1].weight, generator=generator)
    x = torch.rand(4, 1, 8, 8, generator=generator)
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = AutoAttack(**{**SMALL, "eps": 0.3}, version=version, eot=2)
    with pytest.warns(Unreliable, match=f"with {classes} classes .* {classes - 1} of the 9 targets"):
        outcome = attack.run(model, x, y, run=Run())
    assert outcome.success.any()
    with pytest.warns(Unreliable):
        attack.run(model, x, y, run=Run(), target=(y + 1) % classes)


def test_a_wrong_radius_is_refused():
    with pytest.raises(UserError, match=r"autoattack: eps must be .* Did you mean 8/255"):
        AutoAttack(eps=8)


def test_a_campaign_that_was_killed_ends_with_the_same_files(digits, tmp_path, monkeypatch):
    model, images = digits
    monkeypatch.setattr(campaigns, "_PART", 30)
    attack = AutoAttack(eps=0.1, steps=5, queries=20)
    whole = campaign(attack, model, images, run=Run(out=tmp_path / "whole"))
    write, written = campaigns._write, []

    def killed_after_one(path, part):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, part)

    monkeypatch.setattr(campaigns, "_write", killed_after_one)
    with pytest.raises(KeyboardInterrupt):
        campaign(attack, model, images, run=Run(out=tmp_path / "killed"))
    monkeypatch.setattr(campaigns, "_write", write)
    resumed = campaign(attack, model, images, run=Run(out=tmp_path / "killed"))
    for name in ("samples.parquet", "adversarial.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    told, expected = resumed.to_json(), whole.to_json()
    for values in (told, expected):
        assert all(stage.pop("seconds") > 0 for stage in values["stages"])
    assert told == expected
    json.dumps(told)
    direct = attack.run(model, to_float(images.x), images.y, run=Run())
    assert [s["robust_accuracy"] for s in told["stages"]] == [s.robust_accuracy for s in direct.stages]
    stages = pq.read_table(tmp_path / "whole" / "samples.parquet")["stage"].to_pylist()
    names = [*direct.names, None]
    assert stages == [names[i] for i in direct.fell]
    assert len(set(stages)) > 1


def test_bf16_reaches_the_gradients_and_the_screening_but_not_fab(setting, monkeypatch):
    model, x, y = setting
    asked, ways = [], {name: getattr(Oracle, name) for name in ("gradient", "screen")}

    def watched(name):
        def call(self, *args):
            answer = ways[name](self, *args)
            asked.append((self.who, name, self.run.precision, answer is not None))
            return answer

        return call

    for name in ways:
        monkeypatch.setattr(Oracle, name, watched(name))
    attack = AutoAttack(**(SMALL | {"eps": 0.01}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Unreliable)
        attack.run(model, x, y, run=Run(device="cpu", precision="bf16"))
    assert {("apgd", "gradient", "bf16", True), ("square", "screen", "bf16", True)} <= set(asked)
    assert {precision for who, _, precision, _ in asked if who == "fab"} == {"fp32"}
