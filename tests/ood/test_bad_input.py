"""Data as they come: whatever a detector is fitted on or asked about, it scores it or says in a sentence why not."""

import math

import pytest
import torch

from holdfast import catalog
from holdfast.data import Images, load_data
from holdfast.errors import UserError
from holdfast.methods import Detector, Method
from holdfast.models import Features, build_model, load_model
from holdfast.ood import NetworkDetector, fit_detectors, fit_on_features, score_detectors
from holdfast.run import Run

catalog.load_all()
ALL = sorted(
    (m for m in Method.registry.values() if issubclass(m, Detector) and m.__module__.startswith("holdfast.")),
    key=lambda m: m.id,
)
# Gradients cost much: a few images do. Those of some tests are fewer than the neighbours usually asked for.
CHEAPER = {"low-dim-grad": "low-dim-grad(k=5, samples=24, probe_samples=24)", "nnguide": "nnguide(k=10)"}
READING = [CHEAPER.get(m.id, m.id) for m in ALL if not issubclass(m, NetworkDetector)]
LOOKING = [CHEAPER.get(m.id, m.id) for m in ALL if issubclass(m, NetworkDetector)]

K, D, N = 5, 12, 200


@pytest.fixture(scope="module")
def head():
    layer = torch.nn.Linear(D, K)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(9)
        layer.weight.copy_(torch.randn(K, D, generator=rng))
        layer.bias.copy_(torch.randn(K, generator=rng))
    return layer


def features(h, head, y=None):
    with torch.no_grad():
        logits = head(h)
    return Features(logits=logits, penultimate=h, y=logits.argmax(1) if y is None else y)


def ordinary(n=N, seed=0):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)).relu()


def constant(h):
    return h[:1].expand_as(h).clone()


def nothing(h):
    return torch.zeros_like(h)


def duplicates(h):
    return h[: len(h) // 10].repeat(10, 1)


def without_variance(h):
    return h * (torch.arange(D) % 3 > 0)


def on_a_line(h):
    return h[:, :1] * torch.linspace(0.5, 1.5, D)


def huge(h):
    return 1e6 * h


def tiny(h):
    return 1e-12 * h


DEGENERATE = {f.__name__: f for f in (constant, nothing, duplicates, without_variance, on_a_line, huge, tiny)}


def one_class(y):
    return torch.full_like(y, 2)


def a_class_with_one_sample(y):
    y = y.clamp(max=K - 2)
    y[7] = K - 1
    return y


def wrong_at_random(y):
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(3))]


LABELS = {f.__name__: f for f in (one_class, a_class_with_one_sample, wrong_at_random)}


def finite_or_one_sentence(act):
    """The scores that come out, or ``None`` where a sentence does."""
    try:
        scores = act()
    except UserError as error:
        scores, message = None, str(error)
    if scores is None:
        assert message.strip()
        assert "\n" not in message
    else:
        assert torch.isfinite(scores).all()
    return scores


@pytest.mark.parametrize("data", DEGENERATE)
@pytest.mark.parametrize("detector", READING)
def test_features_without_shape_are_learnt_from_or_refused(detector, data, head):
    bad = features(DEGENERATE[data](ordinary()), head)

    def act():
        (fitted,) = fit_on_features([detector], bad, head).values()
        return torch.cat([fitted.score(bad), fitted.score(features(ordinary(20, seed=1), head))])

    finite_or_one_sentence(act)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("detector", READING)
def test_labels_of_any_kind_are_learnt_from(detector, labels, head):
    given = features(ordinary(), head)
    given = features(given.penultimate, head, LABELS[labels](given.y))

    def act():
        (fitted,) = fit_on_features([detector], given, head).values()
        return fitted.score(features(ordinary(50, seed=1), head))

    scores = finite_or_one_sentence(act)
    # SHE remembers the one class alone, and finds all images equally strange that are predicted as another.
    assert scores is None or (detector, labels) == ("she", "one_class") or len(scores.unique()) > 20


@pytest.mark.parametrize("detector", READING)
def test_a_constant_image_gets_the_same_score_in_any_company(detector, head):
    (fitted,) = fit_on_features([detector], features(ordinary(), head), head).values()
    odd = torch.cat([constant(ordinary(5)), nothing(ordinary(5)), ordinary(5)])
    scores = fitted.score(features(odd, head))
    assert torch.isfinite(scores).all()
    for same in (slice(0, 5), slice(5, 10)):
        assert torch.allclose(scores[same], scores[same][:1].expand(5), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("detector", READING)
def test_training_features_that_are_not_finite_are_refused(detector, bad, head):
    given = features(ordinary(), head)
    (fitted,) = fit_on_features([detector], given, head).values()
    if not fitted.method.needs_fit:
        return
    for name in fitted.method.reads:
        spoilt = {"logits": given.logits.clone(), "penultimate": given.penultimate.clone()}
        spoilt[name][3, 1] = bad
        with pytest.raises(UserError, match="hold NaN or infinite values"):
            fit_on_features([detector], Features(y=given.y, **spoilt), head)


# --- those that look on, with images ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load_data("digits").train.select(slice(0, 60))


@pytest.fixture(scope="module")
def model():
    return load_model("zoo:digits-convnet")


IMAGES = {
    "constant": lambda images: images.but(x=images.x[:1].expand_as(images.x).clone()),
    "black": lambda images: images.but(x=torch.zeros_like(images.x)),
    "duplicates": lambda images: images.select(torch.arange(12).repeat(5)),
    "one class": lambda images: images.but(y=torch.full_like(images.y, 2)),
    "a class with one sample": lambda images: images.but(y=torch.where(torch.arange(len(images)) == 7, 9, 3)),
}


@pytest.mark.parametrize("data", IMAGES)
@pytest.mark.parametrize("detector", LOOKING)
def test_images_without_variety_are_learnt_from_or_refused(detector, data, digits, model):
    bad = IMAGES[data](digits)
    run = Run(batch_size=50)

    def act():
        fitted = fit_detectors([detector], model, bad, run=run)
        mixed = torch.cat([bad.x[:10], digits.x[:10]])
        return score_detectors(fitted, model, digits.select(slice(0, 20)).but(x=mixed), run=run).popitem()[1]

    finite_or_one_sentence(act)


@pytest.mark.parametrize("detector", [*READING, *LOOKING])
def test_constant_images_are_scored(detector, digits, model):
    run = Run(batch_size=50)
    fitted = fit_detectors([detector], model, digits, run=run)
    levels = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 1, 8, 8).contiguous()
    images = Images(x=levels, y=torch.zeros(6, dtype=torch.int64), classes=("unknown",))
    assert torch.isfinite(score_detectors(fitted, model, images, run=run).popitem()[1]).all()


@pytest.mark.parametrize("detector", [*READING, *LOOKING])
def test_a_model_whose_weights_are_not_finite_is_refused(detector, digits):
    broken = build_model("convnet", num_classes=10, image_shape=(1, 8, 8)).eval()
    with torch.no_grad():
        next(p for name, p in reversed(list(broken.named_parameters())) if p.ndim == 2).fill_(math.nan)
    run = Run(batch_size=50)

    def act():
        fitted = fit_detectors([detector], broken, digits, run=run)
        return score_detectors(fitted, broken, digits.select(slice(0, 5)), run=run).popitem()[1]

    # What reads features before the broken layer may well go on.
    finite_or_one_sentence(act)
