import math

import pytest
import torch
from torch import nn

from holdfast import stats
from holdfast.data import load_data
from holdfast.data.ood_sets import phase_scrambled
from holdfast.errors import UserError
from holdfast.models import Features, extract, sample_gradients
from holdfast.ood import LowDimGrad, fit_detectors, fit_on_features, low_dim_grad, score_detectors
from holdfast.ood.low_dim_grad import head_gradients, leading_directions, normalised
from holdfast.run import Run

SMALL = "samples=60, probe_samples=150, k=12"


def free_energy(logits, y):
    return logits.logsumexp(1).sum()


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def model(data):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10))
    x, y = next(data.train.batches(len(data.train)))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def train(data):
    return data.train.select(slice(0, 200))


def fitted(spec, model, images):
    (found,) = fit_detectors([spec], model, images, run=Run()).values()
    return found


def projections(detector, model, images, **run):
    watch = detector.watch(model)
    return extract(model, images, run=Run(**run), probes={"v": watch}).observed["v"]


def test_the_last_layers_gradient_is_probabilities_times_features(model, data):
    x, y = next(data.test.batches(9))
    found = extract(model, data.test.select(slice(0, 9)), run=Run())
    exact = sample_gradients(model, x, y, parameters=["4.weight", "4.bias"], loss=free_energy)
    closed = head_gradients(found.penultimate, found.logits, bias=True)
    torch.testing.assert_close(closed, torch.cat([g.flatten(1) for g in exact.values()], dim=1), atol=1e-6, rtol=1e-5)
    assert head_gradients(found.penultimate, found.logits, bias=False).shape[1] == closed.shape[1] - 10


def test_the_leading_directions_are_those_of_subspace_iteration():
    rng = torch.Generator().manual_seed(0)
    spectrum = torch.cat([torch.linspace(9, 5, 6), torch.linspace(1, 0.1, 74)])
    gradients = torch.linalg.qr(torch.randn(80, 80, generator=rng)).Q * spectrum
    gradients = gradients @ torch.linalg.qr(torch.randn(500, 80, generator=rng)).Q.T
    directions = leading_directions(gradients, 6)
    iterated = torch.linalg.qr(torch.randn(500, 6, generator=rng)).Q
    for _ in range(10):
        iterated = torch.linalg.qr(gradients.T @ (gradients @ iterated)).Q
    torch.testing.assert_close(directions.T @ directions, torch.eye(6), atol=1e-5, rtol=0)
    cosines = torch.linalg.svdvals(directions.double().T @ iterated.double())
    assert math.acos(min(1.0, float(cosines.min()))) < 1e-3


def test_no_more_directions_are_given_than_the_rows_span():
    rng = torch.Generator().manual_seed(0)
    gradients = torch.randn(3, 50, generator=rng)[[0, 1, 2, 0, 1]]
    directions = leading_directions(gradients, 5)
    assert directions.shape == (50, 3)
    torch.testing.assert_close(gradients @ directions @ directions.T, gradients, atol=1e-5, rtol=0)


@pytest.mark.parametrize("subspace", ["pca", "classmean", "random"])
def test_the_projections_are_those_of_the_normalised_gradients(model, data, train, subspace):
    detector = fitted(f"low-dim-grad({SMALL}, subspace={subspace})", model, train)
    images = data.test.select(slice(0, 20))
    x, y = next(images.batches(20))
    g = torch.cat([part.flatten(1) for part in sample_gradients(model, x, y, loss=free_energy).values()], dim=1)
    scaled = normalised(g, detector.state)
    v = projections(detector, model, images)
    torch.testing.assert_close(v, scaled @ detector.state["subspace"], atol=1e-3, rtol=1e-4)
    assert v.shape == (20, 10 if subspace == "classmean" else 12)
    columns = detector.state["subspace"]
    torch.testing.assert_close(columns.norm(dim=0), torch.ones(v.shape[1]))
    if subspace != "classmean":
        torch.testing.assert_close(columns.T @ columns, torch.eye(12), atol=1e-5, rtol=0)
        assert (v.norm(dim=1) <= scaled.norm(dim=1) * (1 + 1e-5)).all()


def test_gradients_are_measured_by_their_mean_and_spread_over_training_images(model, train):
    detector = fitted("low-dim-grad(samples=200, k=5, clip=1)", model, train)
    x, y = next(train.batches(200))
    g = torch.cat([part.flatten(1) for part in sample_gradients(model, x, y, loss=free_energy).values()], dim=1)
    scaled = normalised(g, detector.state).double()
    alive = detector.state["scale"] > 0
    torch.testing.assert_close(scaled[:, alive].mean(0), torch.zeros(int(alive.sum())).double(), atol=1e-2, rtol=0)
    torch.testing.assert_close(
        scaled[:, alive].square().mean(0), torch.ones(int(alive.sum())).double(), atol=1e-2, rtol=0
    )
    assert (g[:, ~alive].std(0) < 1e-5).all()


def test_how_many_are_differentiated_at_once_does_not_matter(model, data, train, monkeypatch):
    detector = fitted(f"low-dim-grad({SMALL})", model, train)
    images = data.test.select(slice(0, 30))
    whole = projections(detector, model, images)
    monkeypatch.setattr(low_dim_grad, "_CELLS", 7 * 1900)
    torch.testing.assert_close(projections(detector, model, images, batch_size=11), whole, atol=1e-3, rtol=1e-4)


def test_the_probe_classifies_by_the_projections_alone(model, data, train):
    detector = fitted("low-dim-grad(subspace=classmean, samples=200, probe_samples=200)", model, train)
    v = projections(detector, model, data.test)
    right = (v @ detector.state["weight"].T + detector.state["bias"]).argmax(1) == data.test.y
    assert right.float().mean() > 0.8


def test_the_base_reads_the_projections_and_the_probes_logits(model, data, train):
    images = data.test.select(slice(0, 30))
    specs = [f"low-dim-grad({SMALL}, base={base})" for base in ("energy", "knn(k=5)")]
    found = {spec: fitted(spec, model, train) for spec in specs}
    energy, knn = found.values()
    scores = score_detectors(found, model, images, run=Run())
    v = projections(energy, model, images)
    low = Features(logits=v @ energy.state["weight"].T + energy.state["bias"], penultimate=v, y=images.y)
    torch.testing.assert_close(scores[specs[0]], -low.logits.double().logsumexp(1), atol=1e-4, rtol=1e-4)
    bank = projections(knn, model, train)  # fewer than probe_samples, drawn at random: any subset of the bank
    nearest = fit_on_features(["knn(k=5)"], Features(logits=bank, penultimate=bank, y=train.y), None)["knn(k=5)"]
    assert (scores[specs[1]] >= nearest.score(low) - 1e-4).all()


def test_inputs_unlike_the_training_images_are_told_from_them(model, data):
    detector = fitted("low-dim-grad(samples=300, probe_samples=600)", model, data.train)
    unknown = phase_scrambled(data.test.x, Run())
    known, other = (
        score_detectors({"it": detector}, model, images, run=Run())["it"]
        for images in (data.test, data.test.but(x=unknown))
    )
    assert stats.auroc(known, other) > 0.8


def test_the_last_layer_alone_will_do(model, data, train):
    detector = fitted(f"low-dim-grad({SMALL}, parameters=head)", model, train)
    assert len(detector.state["mean"]) == 10 * extract(model, train, run=Run()).penultimate.shape[1] + 10
    assert torch.isfinite(score_detectors({"it": detector}, model, data.test, run=Run())["it"]).all()
    headless = nn.Sequential(model, nn.Tanh())
    with pytest.raises(UserError, match="the model ends in no linear layer; take parameters=all"):
        fit_detectors(["low-dim-grad(parameters=head)"], headless, train, run=Run())


def test_images_that_are_all_alike_are_refused(model, data):
    one = data.train.select(slice(0, 1))
    alike = one.but(x=one.x.expand(30, -1, -1, -1).clone(), y=one.y.expand(30).clone())
    with pytest.raises(UserError, match="the training images' gradients are all alike"):
        fit_detectors(["low-dim-grad"], model, alike, run=Run())


def test_one_class_and_a_class_of_one_image_will_do(model, data):
    train = data.train.select(slice(0, 50))
    for y in (torch.zeros(50).long(), torch.zeros(50).long().index_fill_(0, torch.tensor([3]), 7)):
        detector = fitted("low-dim-grad(subspace=classmean)", model, train.but(y=y))
        assert torch.isfinite(score_detectors({"it": detector}, model, train, run=Run())["it"]).all()


def test_what_would_not_fit_into_memory_is_refused_before_the_work(model, train, monkeypatch):
    monkeypatch.setattr(low_dim_grad, "_BYTES", 2**18)
    with pytest.raises(UserError, match="take parameters=head, subspace=classmean, or smaller samples and k"):
        fit_detectors([f"low-dim-grad({SMALL})"], model, train, run=Run())


def test_a_base_that_must_see_the_images_is_refused():
    with pytest.raises(UserError, match="base must be a detector of features, but low-dim-grad must see the images"):
        LowDimGrad(base=LowDimGrad())
