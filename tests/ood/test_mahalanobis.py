import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance

from holdfast.errors import UserError
from holdfast.models import Features
from holdfast.ood import Mahalanobis, RelativeMahalanobis

DETECTORS = [Mahalanobis(), RelativeMahalanobis()]


def of(h, y=None):
    y = torch.zeros(len(h), dtype=torch.int64) if y is None else y
    return Features(logits=torch.zeros(len(h), 4), penultimate=h, y=y)


@pytest.fixture(scope="module")
def sets():
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(4, (400,), generator=rng)
    mixing = torch.randn(6, 6, generator=rng)
    known = 3 * torch.randn(4, 6, generator=rng)[y] + torch.randn(400, 6, generator=rng) @ mixing
    return of(known, y), of(3 * torch.randn(50, 6, generator=rng))


def fitted_scores(detector, known, queries):
    return detector.score(queries, detector.fit_features(known, None))


def by_scikit_learn(known, queries):
    """Squared distances to each class, and to all images."""
    h, y, q = known.penultimate.double().numpy(), known.y.numpy(), queries.penultimate.double().numpy()
    means = np.stack([h[y == c].mean(0) for c in np.unique(y)])
    places = np.searchsorted(np.unique(y), y)
    within = EmpiricalCovariance(assume_centered=True).fit(h - means[places])
    total = EmpiricalCovariance().fit(h)
    return np.stack([within.mahalanobis(q - mean) for mean in means], 1), total.mahalanobis(q)


def test_the_distance_is_scikit_learn_s_to_the_nearest_mean(sets):
    to_classes, _ = by_scikit_learn(*sets)
    np.testing.assert_allclose(fitted_scores(Mahalanobis(), *sets), to_classes.min(1), rtol=1e-6)


def test_the_relative_distance_takes_off_that_to_all_images(sets):
    to_classes, to_all = by_scikit_learn(*sets)
    np.testing.assert_allclose(
        fitted_scores(RelativeMahalanobis(), *sets), (to_classes - to_all[:, None]).min(1), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("detector", DETECTORS)
def test_an_invertible_linear_map_of_the_features_changes_nothing(sets, detector):
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(3)).double()
    moved = [of(given.penultimate.double() @ mixing + 7, given.y) for given in sets]
    torch.testing.assert_close(fitted_scores(detector, *moved), fitted_scores(detector, *sets), rtol=1e-4, atol=1e-4)


def test_training_images_lie_as_many_units_from_their_means_as_there_are_directions(sets):
    known, _ = sets
    one_class = of(known.penultimate)
    assert fitted_scores(Mahalanobis(), one_class, one_class).mean() == pytest.approx(6)


def test_with_one_class_the_relative_distance_would_be_0_and_is_refused(sets):
    known, queries = sets
    one_class = of(known.penultimate)
    whole = fitted_scores(Mahalanobis(), one_class, queries)
    assert whole.std() > 0  # it is the difference to all images that vanishes
    with pytest.raises(UserError, match="all training images are of one class"):
        RelativeMahalanobis().fit_features(one_class, None)


@pytest.mark.parametrize("detector", DETECTORS)
def test_dead_units_and_copies_of_units_do_not_count(sets, detector):
    padded = [
        of(torch.cat([given.penultimate, torch.zeros(len(given), 2), given.penultimate[:, :1]], dim=1), given.y)
        for given in sets
    ]
    torch.testing.assert_close(fitted_scores(detector, *padded), fitted_scores(detector, *sets), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_class_with_one_image_is_a_class_like_others(sets, detector):
    known, queries = sets
    y = known.y.clone()
    y[:] = 0
    y[17] = 3
    state = detector.fit_features(of(known.penultimate, y), None)
    assert torch.isfinite(detector.score(queries, state)).all()
    alone = of(known.penultimate[17:18])
    if isinstance(detector, Mahalanobis):
        assert detector.score(alone, state).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("detector", DETECTORS)
def test_features_that_are_all_alike_are_refused_in_one_sentence(detector):
    with pytest.raises(UserError, match=f"{detector.id}: the training features are all alike"):
        detector.fit_features(of(torch.ones(20, 3), torch.arange(20) % 2), None)


def test_a_large_offset_does_not_cost_digits(sets):
    known, queries = (of(given.penultimate.double(), given.y) for given in sets)
    moved = [of(given.penultimate + 1e5, given.y) for given in (known, queries)]
    torch.testing.assert_close(
        fitted_scores(Mahalanobis(), *moved), fitted_scores(Mahalanobis(), known, queries), rtol=1e-6, atol=1e-6
    )
