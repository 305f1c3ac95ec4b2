import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance

from holdfast.errors import UserError
from holdfast.models import Features
from holdfast.ood import statistics
from holdfast.ood.statistics import class_statistics, covariance, inverse_root, mean_of


def features(n=500, d=7, seed=0, offset=0.0):
    rng = torch.Generator().manual_seed(seed)
    h = torch.randn(n, d, generator=rng) @ torch.randn(d, d, generator=rng) + offset
    return Features(logits=torch.zeros(n, 3), penultimate=h, y=torch.randint(3, (n,), generator=rng))


def test_statistics_agree_with_numpy_and_scikit_learn():
    given = features()
    found, h, y = class_statistics(given), given.penultimate.double().numpy(), given.y.numpy()
    assert found.counts.tolist() == [int((y == c).sum()) for c in range(3)]
    np.testing.assert_allclose(found.means, [h[y == c].mean(0) for c in range(3)], atol=1e-12)
    np.testing.assert_allclose(found.total, np.cov(h.T, bias=True), atol=1e-10)
    np.testing.assert_allclose(found.mean, h.mean(0), atol=1e-12)
    residuals = h - found.means.numpy()[y]
    expected = EmpiricalCovariance(assume_centered=True).fit(residuals).covariance_
    np.testing.assert_allclose(found.within, expected, atol=1e-10)


def test_chunks_change_nothing(monkeypatch):
    whole = class_statistics(features())
    monkeypatch.setattr(statistics, "_CHUNK", 37)
    parts = class_statistics(features())
    torch.testing.assert_close(parts.within, whole.within, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(mean_of(features().penultimate), whole.mean, atol=1e-11, rtol=1e-11)


def test_a_large_offset_does_not_drown_the_covariance():
    near = covariance(features().penultimate, mean_of(features().penultimate))
    moved = features(offset=1000.0).penultimate
    torch.testing.assert_close(covariance(moved, mean_of(moved)), near, atol=1e-2, rtol=1e-3)


def test_statistics_are_worked_out_once():
    given = features()
    assert class_statistics(given) is class_statistics(given)


def test_labels_need_not_be_consecutive_and_one_image_of_a_class_will_do():
    given = features()
    y = given.y.clone()
    y[:] = 5
    y[17] = 9
    found = class_statistics(Features(logits=given.logits, penultimate=given.penultimate, y=y))
    assert found.classes.tolist() == [5, 9]
    torch.testing.assert_close(found.means[1], given.penultimate[17].double())


def test_the_inverse_root_whitens_and_leaves_dead_directions_out():
    h = features().penultimate.double()
    h = torch.cat([h, torch.zeros(len(h), 2), h[:, :1]], dim=1)  # two dead units and a copy of another
    root = inverse_root(covariance(h, h.mean(0)), "it")
    assert root.shape == (10, 7)
    white = (h - h.mean(0)) @ root
    torch.testing.assert_close(white.T @ white / len(h), torch.eye(7).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close(root @ root.T, torch.linalg.pinv(covariance(h, h.mean(0)), hermitian=True))


def test_features_that_are_all_alike_are_refused():
    with pytest.raises(UserError, match="it: the training features are all alike"):
        inverse_root(torch.zeros(4, 4).double(), "it")
