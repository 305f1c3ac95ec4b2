import pytest
import torch

from holdfast.models import Features
from holdfast.ood import KernelPCACoGau, fit_on_features
from holdfast.ood.kernel_pca import gaussian_kernel, on_sphere
from holdfast.ood.kpca_cogau import PoorLandmarks

GAMMA = 2.0


def of(h, logits=None, y=None):
    logits = h[:, :4] if logits is None else logits
    return Features(logits=logits, penultimate=h, y=torch.zeros(len(h), dtype=torch.int64) if y is None else y)


@pytest.fixture(scope="module")
def sets():
    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, 8, generator=rng)
    inside = (torch.randn(240, 8, generator=rng) @ mixing).relu() + 0.1
    return inside[:200], inside[200:]


def fitted(train, **fields):
    (found,) = fit_on_features([KernelPCACoGau(gamma=GAMMA, **fields)], train, None).values()
    return found


def exact_errors(train, test, q):
    """Centred kernel PCA by the kernel trick, without a feature map."""
    train, test = on_sphere(train.double()), on_sphere(test.double())
    kernel, cross = gaussian_kernel(train, train, GAMMA), gaussian_kernel(test, train, GAMMA)
    column = kernel.mean(0)
    values, vectors = torch.linalg.eigh(kernel - column - column[:, None] + kernel.mean())
    directions = vectors[:, -q:] / values[-q:].sqrt()
    centred = cross - cross.mean(1, keepdim=True) - column + kernel.mean()
    squared = 1 - 2 * cross.mean(1) + kernel.mean()
    return (squared - (centred @ directions).square().sum(1)).clamp_min(0).sqrt()


def test_with_all_landmarks_it_is_exact_kernel_pca(sets):
    train, test = sets
    found = fitted(of(train), size=200, explained=0.9, residual="rkhs")
    expected = exact_errors(train, torch.cat([test, -test]), found.state["basis"].shape[1])
    torch.testing.assert_close(found.score(of(torch.cat([test, -test]))), expected, atol=1e-6, rtol=0)


def test_the_map_gives_the_kernel_within_the_span_of_the_landmarks(sets):
    train, _ = sets
    found = fitted(of(train), size=40, explained=0.9)
    phi = found.method.phi(train.double(), found.state)
    marks, everything = found.state["landmarks"], on_sphere(train.double())
    cross = gaussian_kernel(everything, marks, GAMMA)
    nystroem = cross @ torch.linalg.pinv(gaussian_kernel(marks, marks, GAMMA), hermitian=True) @ cross.T
    torch.testing.assert_close(phi @ phi.T, nystroem, atol=1e-8, rtol=0)


@pytest.mark.parametrize("residual", ["rkhs", "official"])
def test_the_order_of_the_landmarks_does_not_matter(sets, residual):
    train, test = sets
    forth = fitted(of(train), size=200, explained=0.9, residual=residual)
    back = fitted(of(train, logits=-train[:, :4]), size=200, explained=0.9, residual=residual)
    assert not torch.equal(forth.state["landmarks"], back.state["landmarks"])
    torch.testing.assert_close(forth.score(of(test)), back.score(of(test)), atol=1e-7, rtol=0)


def test_the_landmarks_are_the_training_features_the_model_doubts_most(sets):
    train, _ = sets
    found = fitted(of(train), size=30, explained=0.9)
    doubtful = train[:, :4].double().logsumexp(1).argsort(stable=True)[:30]
    torch.testing.assert_close(found.state["landmarks"], on_sphere(train[doubtful].double()))
    drawn = fitted(of(train), size=30, explained=0.9, landmarks="random").state["landmarks"]
    assert not torch.equal(drawn, found.state["landmarks"])


def test_copies_of_landmarks_change_nothing(sets):
    train, test = sets
    once, twice = (fitted(of(h), size=400, explained=0.9) for h in (train, train.repeat(2, 1)))
    assert len(twice.state["landmarks"]) == 400
    torch.testing.assert_close(once.score(of(test)), twice.score(of(test)), atol=1e-6, rtol=0)


def test_what_is_far_from_all_landmarks_seems_rebuilt_unless_the_lost_part_is_counted(sets):
    train, _ = sets
    (detector,) = fit_on_features(
        ["kpca-cogau(gamma=20, size=200, explained=0.9, residual=rkhs)"], of(train), None
    ).values()
    (official,) = fit_on_features(
        ["kpca-cogau(gamma=20, size=200, explained=0.9, residual=official)"], of(train), None
    ).values()
    far = of(-train[:20])
    assert detector.score(far).min() > 0.99
    assert official.score(far).max() < 0.2


def test_landmarks_that_cover_too_little_are_warned_of(sets):
    train, _ = sets
    with pytest.warns(PoorLandmarks, match="span only"):
        fit_on_features(["kpca-cogau(gamma=20, size=20, explained=0.5, residual=official)"], of(train), None)


def test_landmarks_of_one_class_are_warned_of(sets):
    train, _ = sets
    y = (train[:, :4].logsumexp(1) > train[:, :4].logsumexp(1).median()).long()
    with pytest.warns(PoorLandmarks, match="all landmarks are of one class"):
        fit_on_features(["kpca-cogau(size=50)"], of(train, y=y), None)


def test_with_random_features_it_is_kpca_ood(sets):
    train, test = sets
    fields = "gamma=2, size=64, explained=0.8"
    detectors = [f"kpca-cogau(approximation=random-features, {fields})", f"kpca-ood({fields})"]
    mine, other = fit_on_features(detectors, of(train), None).values()
    assert torch.equal(mine.score(of(test)), other.score(of(test)))
