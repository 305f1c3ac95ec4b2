"""Proofs of universal perturbations."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import catalog, stats
from holdfast.data import Data, Images, load_data, to_float
from holdfast.evasion import DominantPatterns, Pattern, RandomSign, UniversalAttack
from holdfast.evasion.pattern import Effect
from holdfast.models import build_model, extract
from holdfast.proofs.lab import Base, Lab, first_per_class, mean_of
from holdfast.proofs.proof import Measured, proof
from holdfast.training import SGD, fit

__all__: list[str] = []

_SMOKE = (
    "At smoke scale a small network and drawn pictures of 16x16 pixels, with twice the radius, which is the same l_2 "
    "norm. The first smoke runs, on digits at a radius of 0.3, failed for uap (2 passes over 100 images), for fg-uap "
    "against uap, and for dominant-patterns on proxy images: digits are black nearly everywhere, which clips half of a "
    "pattern, and Adam's rates are made for small radii. The thresholds are those of the first runs."
)


def _eps(lab: Lab) -> float:
    """The radius: twice the paper's for images of 16x16 pixels, which is the same l_2 norm."""
    return float(lab.pick(smoke=20 / 255, cpu=10 / 255))


@functools.cache
def _data(lab: Lab) -> Data:
    small = "shapes32(n=3000, size=16, minority=0, rotation=0)"
    return load_data(small, run=lab.run) if lab.scale == "smoke" else lab.data


@functools.cache
def _model(lab: Lab, *, other: bool = False) -> nn.Module:
    """The model attacked, or another of another seed (and, at cpu scale, another length of training)."""
    if lab.scale != "smoke":
        return Lab(lab.scale, lab.run.but(seed=lab.run.seed + 1)).model(Base(epochs=8)) if other else lab.zoo()
    data, run = _data(lab), lab.run.but(seed=lab.run.seed + other)
    assert data.train is not None
    model = build_model("convnet(width=16)", num_classes=10, image_shape=data.shape, run=run)
    return fit(model, data.train, epochs=10, batch_size=64, optimizer=SGD(lr=0.1), run=run).model


def _train(lab: Lab, count: int) -> Images:
    """The first training images, equally many of each class."""
    train = _data(lab).train
    assert train is not None
    return first_per_class(train, count // train.num_classes)


def _test(lab: Lab) -> Images:
    return _data(lab).test.select(slice(0, 2000))


@functools.cache
def _fitted(lab: Lab, id: str) -> Pattern:
    """The pattern of a method for the lab's model; the same for all proofs of one run."""
    fields, count = {
        "uap": (lab.pick(smoke={"images": 200, "epochs": 3}, cpu={"images": 1000, "epochs": 5}), 1000),
        "sgd-uap": ({}, 5000),
        "fg-uap": ({"epochs": 4}, 5000),
        "dominant-patterns": ({"epochs": 4}, 5000),
    }[id]
    method: Any = catalog.find(id)
    attack: UniversalAttack = method(eps=_eps(lab), **fields)
    return attack.fit(_model(lab), _train(lab, lab.pick(smoke=500, cpu=count)), run=lab.run)


@functools.cache
def _effect(lab: Lab, id: str, *, transferred: bool = False) -> Effect:
    return _fitted(lab, id).effect(_model(lab, other=transferred), _test(lab), run=lab.run)


@functools.cache
def _by_chance(lab: Lab, *, transferred: bool = False) -> float:
    """The mean fooling rate of five patterns of random signs."""
    model, test = _model(lab, other=transferred), _test(lab)
    attack = RandomSign(eps=_eps(lab))
    draws = [attack.fit(model, test.select(slice(0, 8)), run=lab.run.but(seed=lab.run.seed + k)) for k in range(5)]
    return mean_of([pattern.fooling_rate(model, test, run=lab.run) for pattern in draws])


def _above_chance(lab: Lab, effect: Effect, *, transferred: bool = False, **details: Any) -> Measured:
    """The fooling rate beyond that of random signs; the interval is that of the fooling rate."""
    chance = _by_chance(lab, transferred=transferred)
    low, high = effect.interval
    return Measured(
        value=effect.fooling_rate - chance,
        low=low - chance,
        high=high - chance,
        baseline=chance,
        baseline_name="fooling rate of random signs",
        n=len(effect.clean),
        details={
            "fooling_rate": effect.fooling_rate,
            "accuracy_drop": effect.accuracy_drop,
            "success_on_right_images": effect.success,
            "dominance": {f"top-{k}": effect.dominance(k) for k in (1, 3, 5)},
            "class_of_the_pattern_alone": effect.alone,
            "class_of_the_mean_with_it": effect.on_mean,
            "most_frequent": effect.dominant(5),
            **details,
        },
    )


def _difference(lab: Lab, first: str, second: str) -> Measured:
    """The fooling rate of one method less that of another, on the same images."""
    mine, theirs = _effect(lab, first), _effect(lab, second)
    a, b = mine.clean != mine.attacked, theirs.clean != theirs.attacked
    return Measured.difference(a, b, f"fooling rate of {second}", details={"fooling_rate": mine.fooling_rate})


@proof(
    method="uap",
    claim="One pattern found by DeepFool changes most predictions on unseen images; random signs of its size do not.",
    source="Moosavi-Dezfooli et al. 2017, Table 1 (ImageNet, 10/255: 78 to 94 %)",
    metric="fooling rate, uap - random signs",
    better="higher",
    threshold={"smoke": 0.1, "cpu": 0.2},
    note=_SMOKE,
)
def uap_fools_more_than_random_signs(lab: Lab) -> Measured:
    """Fitted to training images, measured on test images."""
    return _above_chance(lab, _effect(lab, "uap"))


@proof(
    method="sgd-uap",
    claim="One pattern found by gradient ascent changes most predictions on unseen images; random signs do not.",
    source="Shafahi et al. 2020, section 4",
    metric="fooling rate, sgd-uap - random signs",
    better="higher",
    threshold={"smoke": 0.1, "cpu": 0.2},
    note=_SMOKE,
)
def sgd_uap_fools_more_than_random_signs(lab: Lab) -> Measured:
    """Fitted to training images, measured on test images."""
    return _above_chance(lab, _effect(lab, "sgd-uap"))


@proof(
    method="sgd-uap",
    claim="Gradient ascent finds patterns no weaker than the far slower DeepFool procedure.",
    source="Shafahi et al. 2020, section 4",
    metric="fooling rate, sgd-uap - uap",
    better="higher",
    threshold={"smoke": -0.05, "cpu": -0.05},
    note=_SMOKE,
)
def sgd_uap_is_no_weaker_than_uap(lab: Lab) -> Measured:
    """Both on the same test images."""
    return _difference(lab, "sgd-uap", "uap")


@proof(
    method="fg-uap",
    claim="Turning features away, without labels, gives a pattern that fools far more images than random signs do.",
    source="Ye et al. 2022, Table 2 (direction; threshold ours)",
    metric="fooling rate, fg-uap - random signs",
    better="higher",
    threshold={"smoke": 0.1, "cpu": 0.25},
    note=_SMOKE,
)
def fg_uap_fools_more_than_random_signs(lab: Lab) -> Measured:
    """Fitted to training images, measured on test images; with how collapsed the features are, before and after."""
    test = _test(lab)
    moved = test.but(x=_fitted(lab, "fg-uap").add_to(to_float(test.x)))
    collapse = {}
    for name, images in (("clean", test), ("with the pattern", moved)):
        features = extract(_model(lab), images, run=lab.run)
        assert features.penultimate is not None
        collapse[name] = _spread(features.penultimate, features.predictions)
    return _above_chance(lab, _effect(lab, "fg-uap"), within_over_between=collapse)


@proof(
    method="fg-uap",
    claim="Without labels it is no weaker than the original universal perturbation.",
    source="Ye et al. 2022, Table 2",
    metric="fooling rate, fg-uap - uap",
    better="higher",
    threshold={"smoke": -0.05, "cpu": -0.02},
    note=_SMOKE,
)
def fg_uap_is_no_weaker_than_uap(lab: Lab) -> Measured:
    """Both on the same test images."""
    return _difference(lab, "fg-uap", "uap")


@proof(
    method="fg-uap",
    claim="Images with the pattern gather in one class.",
    source="Ye et al. 2022, section 4 (dominance ratio)",
    metric="share of test images in the most frequent class",
    better="higher",
    threshold={"smoke": 0.2, "cpu": 0.4},
    note=_SMOKE,
)
def fg_uap_gathers_images_in_one_class(lab: Lab) -> Measured:
    """The share of the class predicted most often with the pattern, against that class's share without it."""
    effect = _effect(lab, "fg-uap")
    return Measured.share(
        effect.attacked == effect.dominant(1)[0],
        baseline=effect.clean_share(1),
        baseline_name="its share without the pattern",
    )


@proof(
    method="fg-uap",
    claim="The pattern also fools another network, trained from another seed.",
    source="Ye et al. 2022, section 4 (transfer; threshold ours)",
    metric="fooling rate on the other network, fg-uap - random signs",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.1},
    note=_SMOKE,
)
def fg_uap_carries_over_to_another_network(lab: Lab) -> Measured:
    """Fitted on one model, measured on the other."""
    return _above_chance(lab, _effect(lab, "fg-uap", transferred=True), transferred=True)


@proof(
    method="dominant-patterns",
    claim="A pattern that the network sees under every image changes most predictions, without labels.",
    source="Ye et al. 2021, Table 1 (direction; threshold ours)",
    metric="fooling rate, dominant-patterns - random signs",
    better="higher",
    threshold={"smoke": 0.1, "cpu": 0.2},
    note=_SMOKE,
)
def dominant_patterns_fool_more_than_random_signs(lab: Lab) -> Measured:
    """Fitted to training images, measured on test images."""
    return _above_chance(lab, _effect(lab, "dominant-patterns"))


@proof(
    method="dominant-patterns",
    claim="Drawn pictures of something else serve to find the pattern as well.",
    source="Ye et al. 2021, section 4 (proxy data; threshold ours)",
    metric="fooling rate with drawn shapes, dominant-patterns - random signs",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.05},
    note=_SMOKE,
)
def dominant_patterns_need_no_images_of_the_task(lab: Lab) -> Measured:
    """Fitted to shapes32; at smoke scale, where the task is shapes32, to digits, enlarged and in three channels."""
    proxy = load_data(lab.pick(smoke="digits", cpu="shapes32(n=5000)"), run=lab.run).train
    assert proxy is not None
    x = to_float(proxy.x)
    if proxy.shape != _data(lab).shape:
        x = F.interpolate(x, scale_factor=2, mode="bilinear").expand(-1, 3, -1, -1).clamp(0, 1)
    proxy = proxy.but(x=x, columns={})
    pattern = DominantPatterns(eps=_eps(lab), epochs=4).fit(_model(lab), proxy, run=lab.run)
    return _above_chance(lab, pattern.effect(_model(lab), _test(lab), run=lab.run))


@proof(
    method="dominant-patterns",
    claim="One class is predicted far more often with the pattern than without.",
    source="Ye et al. 2021, section 4 (threshold ours)",
    metric="share of the most frequent class with the pattern / its share without",
    better="higher",
    threshold={"smoke": 1.5, "cpu": 3.0},
    note=_SMOKE,
)
def dominant_patterns_decide_the_class(lab: Lab) -> Measured:
    """The class predicted most often with the pattern; the interval is that of its share with it."""
    effect = _effect(lab, "dominant-patterns")
    before = max(effect.clean_share(1), 1 / len(effect.clean))
    low, high = stats.wilson(int((effect.attacked == effect.dominant(1)[0]).sum()), len(effect.attacked))
    return Measured(
        value=effect.dominance(1) / before,
        low=low / before,
        high=high / before,
        baseline=effect.clean_share(1),
        baseline_name="its share without the pattern",
        n=len(effect.clean),
        details={"class": effect.dominant(1)[0], "class_of_the_pattern_alone": effect.alone},
    )


def _spread(features: Tensor, groups: Tensor) -> float:
    """The scatter of the features within the predicted classes, over that of the classes' means; 0 is collapsed."""
    present = groups.unique()
    means = torch.stack([features[groups == k].mean(0) for k in present])
    place = torch.searchsorted(present, groups)
    within = (features - means[place]).square().sum(1).mean()
    between = (means[place] - features.mean(0)).square().sum(1).mean()
    return float(within / between.clamp_min(1e-12))
