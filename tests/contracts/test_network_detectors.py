"""Laws of the detectors that look on while the model sees the images; the others are held to theirs next door."""

import pytest
import torch

from holdfast import catalog
from holdfast.data import load_data
from holdfast.errors import UserError
from holdfast.methods import Method
from holdfast.models import extract, load_model
from holdfast.ood import FittedDetector, NetworkDetector, fit_detectors, fit_on_features, score_detectors
from holdfast.run import Run

catalog.load_all()
DETECTORS = sorted(
    (m for m in Method.registry.values() if issubclass(m, NetworkDetector) and m.__module__.startswith("holdfast.")),
    key=lambda m: m.id,
)


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def model():
    return load_model("zoo:digits-convnet")


@pytest.fixture(scope="module", params=DETECTORS, ids=lambda m: m.id)
def fitted(request, model, data):
    (detector,) = fit_detectors([request.param.id], model, data.train.select(slice(0, 400)), run=Run()).values()
    return detector


@pytest.fixture(scope="module")
def images(data):
    return data.test.select(slice(0, 40))


def scores(detector, model, images, **run):
    return score_detectors({"it": detector}, model, images, run=Run(**run))["it"]


def test_there_is_one_finite_score_per_image(fitted, model, images):
    found = scores(fitted, model, images)
    assert found.shape == (40,)
    assert found.dtype == torch.float64
    assert torch.isfinite(found).all()
    assert len(found.unique()) > 20


def test_a_score_does_not_depend_on_the_batch_or_the_order(fitted, model, images):
    together = scores(fitted, model, images, batch_size=40)
    torch.testing.assert_close(scores(fitted, model, images, batch_size=7), together, atol=1e-5, rtol=1e-4)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(scores(fitted, model, images.select(order)), together[order], atol=1e-5, rtol=1e-4)


def test_scoring_twice_gives_the_same_and_leaves_the_model_as_it_was(fitted, model, images):
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = {name: value.requires_grad for name, value in model.named_parameters()}
    global_rng = torch.get_rng_state()
    model.train()
    first = scores(fitted, model, images)
    assert model.training
    model.eval()
    assert torch.equal(first, scores(fitted, model, images))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert {name: value.requires_grad for name, value in model.named_parameters()} == wanted
    assert all(value.grad is None for value in model.parameters())
    assert torch.equal(torch.get_rng_state(), global_rng)


def test_fitting_twice_gives_the_same_state(fitted, model, data):
    (again,) = fit_detectors([fitted.method], model, data.train.select(slice(0, 400)), run=Run()).values()
    assert again.state.keys() == fitted.state.keys()
    for name, value in fitted.state.items():
        torch.testing.assert_close(again.state[name], value, atol=0, rtol=0, equal_nan=False)


def test_labels_of_what_is_scored_are_not_read(fitted, model, images):
    assert torch.equal(scores(fitted, model, images.but(y=images.y * 0)), scores(fitted, model, images))


def test_features_alone_are_refused(fitted, model, images):
    with pytest.raises(UserError, match="must see the images"):
        fitted.score(extract(model, images, run=Run()))
    if fitted.method.needs_fit:
        with pytest.raises(UserError, match="must see the images"):
            fit_on_features([fitted.method], None, None)


def test_a_detector_says_whether_it_learns(fitted, model):
    assert bool(fitted.state) == fitted.method.needs_fit
    if fitted.method.needs_fit:
        with pytest.raises(UserError, match="learns from training images, but there are none"):
            fit_detectors([fitted.method], model, None, run=Run())


def test_a_detector_survives_saving(fitted, model, images, tmp_path):
    fitted.save(tmp_path / "d.safetensors")
    loaded = FittedDetector.load(tmp_path / "d.safetensors")
    assert loaded.method == fitted.method
    assert torch.equal(scores(loaded, model, images), scores(fitted, model, images))
