"""Objectives that train with outliers, or on the direction of the logits alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from holdfast.data import SyntheticOutliers, load_data
from holdfast.errors import UserError
from holdfast.models import extract, load_model, predict
from holdfast.ood import EnergyBounded, LogitNorm, OutlierExposure, energy_margins, fit_on_features
from holdfast.ood.energy_bounded import hinges
from holdfast.ood.logit_norm import normalised
from holdfast.ood.outlier_exposure import uniformity
from holdfast.run import Run
from holdfast.stats import auroc
from holdfast.training import SGD, Companion, CrossEntropy, Step, fit

RNG = torch.Generator().manual_seed(0)
X, OUT = torch.randn(12, 5, generator=RNG) * 3, torch.randn(9, 5, generator=RNG) * 3
Y = torch.arange(12) % 5


def identity(x):
    return x


def step():
    return Step(companions={"outliers": Companion(OUT, torch.zeros(9, dtype=torch.int64))})


@pytest.mark.parametrize("objective", [OutlierExposure(weight=0), EnergyBounded(weight=0)])
def test_without_weight_it_is_cross_entropy_to_the_last_bit(objective):
    assert torch.equal(objective(identity, X, Y, step()), CrossEntropy()(identity, X, Y, Step()))


@pytest.mark.parametrize("objective", [OutlierExposure(), EnergyBounded()])
def test_known_images_and_outliers_are_one_pass_and_accuracy_counts_the_known(objective):
    passes = []

    def model(x):
        passes.append(len(x))
        return x

    given = step()
    objective(model, X, Y, given)
    assert passes == [21]
    assert torch.equal(given.logits, X)


def test_uniformity_is_the_cross_entropy_to_the_uniform_distribution_and_least_there():
    expected = F.cross_entropy(OUT, torch.full_like(OUT, 1 / 5))
    torch.testing.assert_close(uniformity(OUT), expected)
    assert uniformity(OUT) > uniformity(torch.full((3, 5), 7.0))
    assert math.isclose(uniformity(torch.full((3, 5), 7.0)).item(), math.log(5), rel_tol=1e-6)
    leaf = torch.zeros(3, 5, requires_grad=True)
    assert torch.autograd.grad(uniformity(leaf), leaf)[0].abs().max() < 1e-7


def test_hinges_that_nothing_touches_leave_cross_entropy():
    assert hinges(X + 100, OUT - 100, m_in=-50, m_out=50) == 0
    bounded = EnergyBounded(m_in=-50, m_out=-40)
    given = Step(companions={"outliers": Companion(OUT - 100, torch.zeros(9, dtype=torch.int64))})
    assert torch.equal(bounded(identity, X + 100, Y, given), F.cross_entropy(X + 100, Y))


def test_hinges_are_the_squared_excess_of_each_group():
    known, unknown = torch.zeros(4, 2), torch.full((2, 2), 3.0)  # energies -log 2 and -3 - log 2
    excess, lack = 1 - math.log(2), 2 + math.log(2)
    assert hinges(known, unknown, -1, -1).item() == pytest.approx(excess**2 + lack**2, rel=1e-6)


def test_crossed_margins_are_refused():
    with pytest.raises(UserError, match="m_out must be at least m_in = -5"):
        EnergyBounded(m_in=-5, m_out=-6)


def test_margins_follow_the_model():
    model, images = load_model("zoo:digits-convnet"), load_data("digits").test
    m_in, m_out = energy_margins(model, images, run=Run())
    assert m_in == pytest.approx(-predict(model, images, run=Run()).logsumexp(1).mean().item(), rel=1e-5)
    assert m_out == m_in + 10


def test_logit_norm_does_not_see_the_length_of_the_logits():
    objective = LogitNorm()
    loss = objective(identity, X, Y, Step())
    assert objective(identity, 10 * X, Y, Step()).item() == pytest.approx(loss.item(), abs=1e-4)
    torch.testing.assert_close(normalised(X, 0.04).norm(dim=1), torch.full((12,), 25.0))
    torch.testing.assert_close(loss, F.cross_entropy(25 * F.normalize(X), Y), rtol=1e-4, atol=1e-4)
    leaf = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(identity, leaf, Y, Step()), leaf)
    assert (gradient * X).sum(1).abs().max() < 1e-5, "the loss pulls along the logits"


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.mark.parametrize(("objective", "detector"), [(OutlierExposure(), "msp"), (EnergyBounded, "energy")])
def test_fine_tuning_with_outliers_detects_outliers_of_another_kind(data, objective, detector):
    """Trained with mixtures of two digits, tested on drawn shapes."""
    model, run = load_model("zoo:digits-convnet"), Run()
    (fitted,) = fit_on_features([detector], None, None).values()
    made, unknown = (
        SyntheticOutliers(kinds=kinds)(images, run=run)
        for kinds, images in ((["mixed"], data.train), (["shapes"], data.test))
    )

    def separates():
        scores = [fitted.score(extract(model, images, run=run)).numpy() for images in (data.test, unknown)]
        return auroc(*scores)

    before = separates()
    if objective is EnergyBounded:
        m_in, m_out = energy_margins(model, data.train, run=run)
        objective = EnergyBounded(m_in=m_in, m_out=m_out)
    fit(
        model,
        data.train,
        epochs=2,
        objective=objective,
        companions={"outliers": made},
        optimizer=SGD(lr=0.005),
        schedule="cosine",
        run=run,
    )
    assert separates() > before + 0.005
    assert (predict(model, data.test, run=run).argmax(1) == data.test.y).float().mean() > 0.95
