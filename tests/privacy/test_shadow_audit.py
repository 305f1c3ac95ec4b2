import json

import pytest
import torch

from holdfast import stats
from holdfast.data import load_data
from holdfast.errors import UserError
from holdfast.models import build_model, extract
from holdfast.privacy import FitRecipe, LossMIA, audit_with_shadows
from holdfast.run import Run
from holdfast.training import SGD

RECIPE = FitRecipe(epochs=40, batch_size=25, optimizer=SGD(lr=0.1, weight_decay=0.0))
RUN = Run(seed=3)


@pytest.fixture(scope="module")
def sets():
    train = load_data("digits").train
    return train.select(slice(0, 150)), train.select(slice(150, 300))


@pytest.fixture(scope="module")
def model(sets):
    new = build_model("mlp", num_classes=10, image_shape=sets[0].shape, run=RUN)
    return RECIPE(new, sets[0], run=RUN)


@pytest.fixture(scope="module")
def audit(model, sets):
    attacks = ["lira", "rmia", "loss-mia"]
    return audit_with_shadows(model, *sets, RECIPE, attacks=attacks, shadows=16, resamples=200, run=RUN)


def test_shadow_models_find_members_of_an_overfit_model(audit):
    assert list(audit.leakage) == ["lira", "rmia", "loss-mia"]
    assert audit.leakage["lira"].auc_interval[0] > 0.5
    assert audit.leakage["rmia"].auc_interval[0] > 0.5
    assert audit.shadows == 16
    assert audit.notes == ()


def test_figures_are_those_of_the_scores(audit, model, sets):
    assert torch.equal(audit.member, torch.arange(300) < 150)
    for name, score in audit.scores.items():
        area = stats.auroc(score[150:].numpy(), score[:150].numpy())
        assert audit.leakage[name].auc == area
    alone = torch.cat([LossMIA().score(extract(model, images, run=RUN)) for images in sets])
    assert torch.allclose(audit.scores["loss-mia"], alone, rtol=1e-3, atol=1e-9)


def test_swapping_members_and_others_mirrors_the_auc(audit, model, sets):
    swapped = audit_with_shadows(model, sets[1], sets[0], attacks=["loss-mia"], resamples=10, run=RUN)
    assert swapped.leakage["loss-mia"].auc == pytest.approx(1 - audit.leakage["loss-mia"].auc, abs=1e-3)
    assert swapped.shadows == 0


def test_the_table_has_a_row_per_image_and_the_json_every_figure(audit, sets):
    table = audit.table()
    assert table.num_rows == 300
    assert table.column_names == ["split", "index", "label", "member", "lira", "rmia", "loss-mia"]
    assert table["label"].to_pylist() == torch.cat([s.y for s in sets]).tolist()
    assert table["index"].to_pylist() == [*range(150), *range(150)]
    told = json.loads(json.dumps(audit.to_json(), allow_nan=False))
    assert told["attacks"]["lira"]["auc"]["value"] == audit.leakage["lira"].auc
    assert told["attacks"]["lira"]["tpr"]["0.001"] == {"value": None, "low": None, "high": None}
    assert told["attacks"]["lira"]["tpr"]["0.01"]["value"] is not None


def test_a_population_of_its_own_stands_for_all_others(model, sets):
    extra = load_data("digits").val.select(slice(0, 100))
    found = audit_with_shadows(
        model, *sets, RECIPE, attacks=["rmia(a=0.5)"], shadows=2, population=extra, resamples=10, run=RUN
    )
    (scores,) = found.scores.values()
    assert len(scores) == 300
    assert torch.allclose((scores * 100).round(), scores * 100)  # shares of a hundred images


def test_what_weakens_the_audit_is_said(model, sets):
    one_sided = sets[1].select(sets[1].y < 5)
    found = audit_with_shadows(model, sets[0], one_sided, RECIPE, attacks=["loss-mia"], resamples=10, run=RUN)
    assert "mix of classes by" in found.notes[0]
    few = sets[1].select(slice(0, 20))
    trivial = FitRecipe(epochs=1)
    found = audit_with_shadows(model, sets[0], few, trivial, attacks=["rmia(a=1)"], shadows=2, resamples=10, run=RUN)
    assert any("trained on 85 images, the attacked model on 150" in note for note in found.notes)


def test_mistakes_are_said_in_one_sentence(model, sets):
    empty = sets[0].select([])
    for members, others in ((empty, sets[1]), (sets[0], empty)):
        with pytest.raises(UserError, match="at least two"):
            audit_with_shadows(model, members, others, RECIPE, run=RUN)
    for attacks, message in (
        (["msp"], "'?msp'? is of kind detector"),
        (["lyra"], "Did you mean 'lira'"),
        ([], "at least one attack"),
    ):
        with pytest.raises(UserError, match=message):
            audit_with_shadows(model, *sets, RECIPE, attacks=attacks, run=RUN)
    with pytest.raises(UserError, match="must be even"):
        audit_with_shadows(model, *sets, RECIPE, attacks=["lira"], shadows=3, run=RUN)
    with pytest.raises(UserError, match="at least 2 shadow models"):
        audit_with_shadows(model, *sets, FitRecipe(epochs=1), attacks=["lira"], shadows=2, run=RUN)
