"""The checks that attack: by class and by queries, in l_2, with one pattern, from other models, for labels, a guard."""

import dataclasses

import numpy as np
import pytest
import torch
from patterns_task import TINY, Linear, split

from holdfast import Run
from holdfast.audit import audit
from holdfast.data import Data, load_data
from holdfast.evasion import AAA
from holdfast.models import Queryable, load_model

RUN = Run(device="cpu", batch_size=64)


@pytest.fixture(scope="module")
def data():
    """Images so noisy that small changes matter."""
    return Data(name="patterns", train=split("train", 120, seed=1), test=split("test", 96, seed=3))


def check(model, data, id, *, policy=None, **profile):
    chosen = dataclasses.replace(TINY, **profile)
    return audit(model, data, profile=chosen, run=RUN, only=[id], policy=policy).finding(id)


def values(found):
    return {m.name: m.value for m in found.metrics}


def chart(found, title):
    return next(f for f in found.figures if f.type == "chart" and f.title.startswith(title))


def test_accuracy_by_class_adds_up_to_the_whole(data):
    found = check(Linear(), data, "evasion", policy={"threat": {"eps": 0.05}}, attack_images=96)
    by_class, y = chart(found, "Accuracy by class"), data.test.y.numpy()
    counts = np.bincount(y, minlength=4)
    for series, name in zip(by_class.series, ("clean-accuracy", "robust-accuracy"), strict=True):
        assert (np.array(series.y) * counts).sum() / 96 == pytest.approx(values(found)[name])


def test_the_query_curve_falls_from_the_clean_accuracy_to_what_square_left(data):
    found = check(Linear(), data, "evasion", policy={"threat": {"eps": 0.1}}, square_images=96, attack_images=96)
    curve = chart(found, "Accuracy by queries").series[0]
    assert curve.x == sorted(curve.x)
    assert curve.y == sorted(curve.y, reverse=True)
    assert curve.y[0] == pytest.approx(values(found)["clean-accuracy"])
    assert curve.y[-1] == pytest.approx(values(found)["square-accuracy"])


def test_in_l2_accuracy_falls_with_the_radius(data):
    rates = [
        values(check(Linear(), data, "evasion-l2", policy={"threat": {"eps_l2": eps}}, l2_images=48))["robust-accuracy"]
        for eps in (1e-4, 0.5, 3.0)
    ]
    clean = values(check(Linear(), data, "evasion-l2", l2_images=48))["clean-accuracy"]
    assert rates[0] == pytest.approx(clean, abs=0.03)
    assert rates[0] > rates[1] > rates[2]


def test_one_pattern_for_all_images_costs_a_linear_model_its_accuracy(data):
    found = check(Linear(), data, "universal-perturbation", policy={"threat": {"eps": 0.3}})
    clean = float((Linear()(data.test.x).argmax(1) == data.test.y).double().mean())
    measured = values(found)
    assert measured["drop"] == pytest.approx(clean - measured["universal-accuracy"])
    assert measured["drop"] > 0.2
    assert found.settings["split"].startswith("fitted to training images")
    alone = check(Linear(), data.but(train=None), "universal-perturbation", policy={"threat": {"eps": 0.3}})
    assert alone.settings["fitted to"] == TINY.universal_images
    assert alone.settings["images"] == 48


def test_what_the_profile_leaves_out_is_not_assessed(data):
    for id, field in (("evasion-l2", "l2_images"), ("universal-perturbation", "universal_images")):
        found = check(Linear(), data, id, **{field: 0})
        assert found.verdict == "not assessed"
        assert "leaves it out" in found.reason


def test_images_made_on_a_bundled_model_are_tried_on_another_but_never_on_itself():
    digits = load_data("digits")
    own = load_model("zoo:digits-convnet")
    found = check(own, digits, "transfer-attacks", policy={"threat": {"eps": 0.2}})
    assert found.verdict == "not assessed"
    assert "holdfast transfer" in found.reason
    other = load_model("zoo:digits-convnet")
    with torch.no_grad():
        other.fc.bias += 0.01  # nearly the same model: what fools one fools the other
    found = check(other, digits, "transfer-attacks", policy={"threat": {"eps": 0.3}}, transfer_images=40)
    assert values(found)["transfer-accuracy"] < values(found)["clean-accuracy"] - 0.3
    assert found.settings["surrogates"] == ["digits-convnet"]


def test_an_attacker_who_sees_labels_only_is_stopped_by_the_radius_alone(data):
    near, far = (
        values(
            check(
                Linear(),
                data,
                "decision-attacks",
                policy={"threat": {"eps": eps}},
                decision_images=20,
                decision_queries=300,
            )
        )
        for eps in (1e-4, 1)
    )
    assert near["label-only-accuracy"] == near["clean-accuracy"]
    assert far["label-only-accuracy"] == 0
    assert near["median-distance"] == far["median-distance"]


def test_a_model_that_answers_with_labels_meets_an_attack_that_needs_no_more(data):
    model = Linear()
    asked = Queryable(lambda x: model(x).argmax(1), num_classes=4)
    found = check(asked, data, "evasion", policy={"threat": {"eps": 0.5}}, decision_images=10)
    assert found.settings["knowledge"] == "answers only (hopskipjump)"
    assert values(found)["robust-accuracy"] == 0


def test_a_guard_that_misleads_loses_its_robustness_once_it_is_known(data):
    guarded = AAA(tau=6, iterations=30)(Linear())
    found = check(guarded, data, "guard", policy={"threat": {"eps": 0.1}}, guard_images=48, pgd_steps=5)
    measured = values(found)
    assert measured["unaware-accuracy"] > measured["knowing-accuracy"] + 0.2
    assert measured["gap"] == pytest.approx(measured["unaware-accuracy"] - measured["knowing-accuracy"])
    assert found.verdict in ("attention", "fail")
    assert check(Linear(), data, "guard").verdict == "not assessed"


def test_more_attacks_bring_the_nearest_error_nearer(data):
    one, two = (values(check(Linear(), data, "minimal-norm", cw_steps=s))["median-distance"] for s in (0, 50))
    assert two <= one + 1e-6
