import copy
import json
from dataclasses import dataclass, field

import pytest
import torch

from holdfast import stats
from holdfast.data import load_data
from holdfast.errors import UserError
from holdfast.models import build_model
from holdfast.privacy import FitRecipe, LiRA, Shadows, ULiRA, balanced_halves
from holdfast.run import Run
from holdfast.training import SGD
from holdfast.unlearning import Retrain

RECIPE = FitRecipe(epochs=30, batch_size=25, optimizer=SGD(lr=0.1, weight_decay=0.0))
RETRAIN = Retrain(epochs=30, batch_size=25, optimizer=SGD(lr=0.1, weight_decay=0.0), crop=None, flip=None)


@dataclass(frozen=True)
class Forgets:
    """Does nothing, and remembers what it was asked."""

    log: list = field(default_factory=list, repr=False)

    def __call__(self, model, forget, retain, *, run):
        self.log.append((forget, retain, run))
        return copy.deepcopy(model)


@pytest.fixture(scope="module")
def sets():
    train = load_data("digits").train
    return train.select(slice(0, 100)), train.select(slice(100, 200))


@pytest.fixture(scope="module")
def model(sets):
    return build_model("mlp", num_classes=10, image_shape=sets[0].shape, run=Run())


@pytest.fixture(scope="module")
def report(model, sets):
    unlearners = {"nothing": Forgets(), "retrain": RETRAIN}
    return ULiRA(models=12, resamples=200)(model, *sets, RECIPE, unlearners, run=Run())


def test_what_is_not_unlearned_shows_and_what_is_retrained_does_not(report):
    original, nothing, retrain = (report.traces[name] for name in ("original", "nothing", "retrain"))
    assert original.auc_interval[0] > 0.55
    assert nothing.auc == original.auc
    assert retrain.auc_interval[0] < 0.5 < retrain.auc_interval[1]
    assert retrain.distance < 0.08 < original.distance


def test_the_trace_is_that_of_the_scores(report):
    for name, trace in report.traces.items():
        scores, seen = report.scores[name], report.members
        assert trace.auc == stats.auroc(scores[~seen].numpy(), scores[seen].numpy())
        assert trace.distance == abs(trace.auc - 0.5)
        low, high = trace.distance_interval
        assert low <= trace.distance <= high or trace.auc_interval[0] > trace.auc  # percentile intervals may miss
        if trace.auc_interval[0] <= 0.5 <= trace.auc_interval[1]:
            assert low == 0


def test_each_model_is_attacked_with_the_help_of_the_others_alone():
    rng = torch.Generator().manual_seed(0)
    members = balanced_halves(20, 8, Run())
    log_odds = torch.randn(8, 1, 20, generator=rng, dtype=torch.float64)
    scores = ULiRA(models=8)._scores(Shadows(log_odds=log_odds, members=members))
    rest = [0, 1, 4, 5, 6, 7]  # 2 was trained on what 3 was not
    others = Shadows(log_odds=log_odds[rest], members=members[rest])
    assert torch.equal(scores[3], LiRA().score(log_odds[3], others))


def test_every_unlearner_is_asked_to_forget_one_half_and_never_saw_the_other(model, sets):
    log = []
    images, retain = sets
    report = ULiRA(models=6, resamples=5)(model, images, retain, RECIPE, {"u": Forgets(log=log)}, run=Run(seed=8))
    assert len(log) == 6
    for (forget, kept, _), mask in zip(log, report.members, strict=True):
        assert torch.equal(forget.x, images.x[mask])
        assert len(forget) == 50
        assert kept.fingerprint() == retain.fingerprint()
    assert len({run.seed_for("x") for _, _, run in log}) == 6  # or all retrained models would be one and the same


def test_a_second_audit_takes_up_the_first_and_trains_only_for_what_is_new(model, sets, tmp_path):
    log, trained = [], []

    @dataclass(frozen=True)
    class Noted:
        epochs: int = 1

        def __call__(self, network, images, *, run):
            trained.append(len(images))
            return FitRecipe(epochs=self.epochs)(network, images, run=run)

    run, audit = Run(out=tmp_path), ULiRA(models=6, resamples=5)
    first = audit(model, *sets, Noted(), {"u": Forgets(log=log)}, run=run)
    second = audit(model, *sets, Noted(), {"u": Forgets(log=log)}, run=run)
    assert (len(trained), len(log)) == (6, 6)
    assert trained == [150] * 6
    assert first.to_json() == second.to_json()
    audit(model, *sets, Noted(), {"new": lambda model, forget, retain, *, run: model}, run=run)
    assert len(trained) == 12  # for the new unlearner, the trained models are needed again


def test_the_report_is_plain_and_readable(report):
    told = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert told["models"] == 12
    assert list(told["traces"]) == ["original", "nothing", "retrain"]
    assert [row["unlearner"] for row in report.listing()] == ["original", "nothing", "retrain"]
    assert "retrain: AUC" in report.sentence


def test_unlearners_may_be_named_by_specs_and_mistakes_are_said(model, sets):
    audit, images, retain = ULiRA(models=6, resamples=5), *sets
    found = audit(model, images, retain, FitRecipe(epochs=1), ["ft(epochs=1, crop=none, flip=none)"], run=Run())
    assert list(found.traces) == ["original", "ft(epochs=1, crop=none, flip=none)"]
    for given, message in (
        ({"original": RETRAIN}, "'original' stands for no unlearner"),
        (["pgd"], "of kind attack"),
    ):
        with pytest.raises(UserError, match=message):
            audit(model, images, retain, RECIPE, given, run=Run())
    with pytest.raises(UserError, match="nothing is retained"):
        audit(model, images, retain.select([]), RECIPE, [], run=Run())
    with pytest.raises(UserError, match="at least two images"):
        audit(model, images.select([]), retain, RECIPE, [], run=Run())
    with pytest.raises(UserError, match="must be even"):
        ULiRA(models=7)(model, images, retain, RECIPE, [], run=Run())
    with pytest.raises(UserError, match="it needs a recipe, unlearners and images to forget"):
        audit.of_models({"m": model}, images, run=Run())
