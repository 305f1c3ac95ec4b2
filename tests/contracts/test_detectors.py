"""Laws that every detector keeps: scores belong to images, not to batches, and bad input is refused."""

import math

import pytest
import torch

from holdfast import catalog
from holdfast.errors import UserError
from holdfast.methods import Detector, Method
from holdfast.models import Features
from holdfast.ood import FittedDetector, NetworkDetector, fit_on_features

catalog.load_all()
DETECTORS = sorted(
    (
        m
        for m in Method.registry.values()
        if issubclass(m, Detector) and not issubclass(m, NetworkDetector) and m.__module__.startswith("holdfast.")
    ),
    key=lambda m: m.id,
)


def features(n, seed, k=5, d=12):
    rng = torch.Generator().manual_seed(seed)
    h = torch.randn(n, d, generator=rng).relu()
    weight = torch.randn(k, d, generator=torch.Generator().manual_seed(99))
    logits = h @ weight.T
    return Features(logits=logits, penultimate=h, y=logits.argmax(1), layers={})


def but(given, **changes):
    values = {"logits": given.logits, "penultimate": given.penultimate, "y": given.y, "layers": given.layers}
    return Features(**{**values, **changes})


@pytest.fixture(scope="module")
def head():
    layer = torch.nn.Linear(12, 5, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5, 12, generator=torch.Generator().manual_seed(99)))
    return layer


@pytest.fixture(scope="module", params=DETECTORS, ids=lambda m: m.id)
def fitted(request, head):
    (detector,) = fit_on_features([request.param.id], features(200, seed=0), head).values()
    return detector


@pytest.fixture
def images():
    return features(60, seed=1)


def test_there_is_one_finite_score_per_image(fitted, images):
    scores = fitted.score(images)
    assert scores.shape == (60,)
    assert scores.dtype == torch.float64
    assert torch.isfinite(scores).all()
    assert len(scores.unique()) > 30


def test_a_score_does_not_depend_on_the_batch(fitted, images):
    together = fitted.score(images)
    alone = torch.cat([fitted.score(images.select([i])) for i in range(len(images))])
    assert torch.allclose(together, alone, atol=1e-6, rtol=1e-6)


def test_scores_follow_the_order_of_the_images(fitted, images):
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(fitted.score(images.select(order)), fitted.score(images)[order], atol=1e-6, rtol=1e-6)


def test_scoring_twice_gives_the_same_and_changes_nothing(fitted, images):
    before = images.logits.clone(), images.penultimate.clone()
    state = {name: value.clone() for name, value in fitted.state.items()}
    global_rng = torch.get_rng_state()
    assert torch.equal(fitted.score(images), fitted.score(images))
    assert torch.equal(images.logits, before[0])
    assert torch.equal(images.penultimate, before[1])
    assert all(torch.equal(fitted.state[name], value) for name, value in state.items())
    assert torch.equal(torch.get_rng_state(), global_rng)


def test_a_score_can_be_written_to(fitted, images):
    fitted.score(images).requires_grad_().sum().backward()


def test_fitting_twice_gives_the_same_state_and_leaves_the_features(fitted, head):
    given = features(200, seed=0)
    (again,) = fit_on_features([fitted.method], given, head).values()
    assert again.state.keys() == fitted.state.keys()
    assert all(torch.equal(again.state[name], value) for name, value in fitted.state.items())
    assert torch.equal(given.penultimate, features(200, seed=0).penultimate)


def test_labels_of_what_is_scored_are_not_read(fitted, images):
    assert torch.equal(fitted.score(but(images, y=images.y * 0)), fitted.score(images))


def test_only_what_is_declared_is_read(fitted, images):
    unread = {"logits", "penultimate"} - fitted.method.reads
    poisoned = but(images, **{name: torch.full_like(getattr(images, name), math.nan) for name in unread})
    assert torch.equal(fitted.score(poisoned), fitted.score(images))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(fitted, images, bad):
    for name in fitted.method.reads:
        value = getattr(images, name).clone()
        value[3, 1] = bad
        with pytest.raises(UserError, match=f"the {name} features hold NaN or infinite values") as caught:
            fitted.score(but(images, **{name: value}))
        assert "\n" not in str(caught.value)


def test_no_images_are_refused(fitted, images):
    with pytest.raises(UserError, match="there are no features to read"):
        fitted.score(images.select(slice(0, 0)))


def test_missing_features_are_refused(fitted, images):
    if "penultimate" in fitted.method.reads:
        with pytest.raises(UserError, match="reads penultimate features"):
            fitted.score(but(images, penultimate=None))


def test_a_detector_says_whether_it_learns(fitted):
    assert bool(fitted.state) == fitted.method.needs_fit
    if fitted.method.needs_fit:
        with pytest.raises(UserError, match="learns from training features, but there are none"):
            fit_on_features([fitted.method], None, None)


def test_a_detector_survives_saving(fitted, images, tmp_path):
    fitted.save(tmp_path / "d.safetensors")
    loaded = FittedDetector.load(tmp_path / "d.safetensors")
    assert loaded.method == fitted.method
    assert torch.equal(loaded.score(images), fitted.score(images))
