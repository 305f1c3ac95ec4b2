import pytest
import torch

from holdfast.errors import UserError
from holdfast.models import Features
from holdfast.ood import FittedDetector, fit_on_features, kernel_pca
from holdfast.ood.kernel_pca import (
    fourier,
    gaussian_kernel,
    on_sphere,
    principal_subspace,
    random_frequencies,
    squared_residual,
)

TINY = "kpca-ood(size=64)"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(h):
    h = h.float()
    return Features(logits=h @ normal(h.shape[1], 5, seed=9).float(), penultimate=h, y=torch.zeros(len(h)).long())


def same(h):
    return h


@pytest.fixture(scope="module")
def correlated():
    return normal(300, 12) @ normal(12, 12, seed=1) + 3


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_random_features_approximate_the_gaussian_kernel(gamma):
    h = on_sphere(normal(100, 16))
    size = 2000
    mapped = fourier(h, random_frequencies(16, size, gamma, seed=0))
    assert mapped.shape == (100, size)
    exact = torch.exp(-gamma * torch.cdist(h, h).square())
    assert (mapped @ mapped.T - exact).abs().max() < 5 / size**0.5
    torch.testing.assert_close(gaussian_kernel(h, h, gamma), exact)


def test_the_error_is_the_distance_from_the_subspace(correlated):
    found = principal_subspace(correlated, same, 0.8, "it")
    basis = found["basis"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double(), atol=1e-12, rtol=0)
    deviations = correlated - correlated.mean(0)
    rebuilt = deviations @ basis @ basis.T
    torch.testing.assert_close(
        squared_residual(correlated, found), (deviations - rebuilt).square().sum(1), atol=1e-8, rtol=0
    )


def test_the_subspace_is_the_smallest_that_explains_enough(correlated):
    variances = torch.linalg.eigvalsh(torch.cov(correlated.T)).flip(0)
    shares = variances.cumsum(0) / variances.sum()
    for explained in (0.3, 0.8, 0.99):
        q = principal_subspace(correlated, same, explained, "it")["basis"].shape[1]
        assert shares[q - 1] >= explained
        assert q == 1 or shares[q - 2] < explained


def test_few_features_in_many_dimensions_give_the_same_errors(correlated):
    def padded(h):
        return torch.cat([h, h.new_zeros(len(h), 500)], dim=1)

    narrow = principal_subspace(correlated, same, 0.8, "it")
    wide = principal_subspace(correlated, padded, 0.8, "it")  # 300 features, 512 dimensions
    queries = 5 * normal(20, 12, seed=2)
    torch.testing.assert_close(squared_residual(queries, narrow), squared_residual(padded(queries), wide))


def test_all_directions_that_vary_rebuild_every_training_feature():
    h = normal(300, 3) @ normal(3, 12, seed=1)
    found = principal_subspace(h, same, 1 - 1e-12, "it")
    assert found["basis"].shape == (12, 3)
    assert squared_residual(h, found).max() < 1e-12
    assert squared_residual(normal(10, 12, seed=2), found).min() > 0.1


def test_blocks_do_not_change_the_errors(correlated, monkeypatch):
    whole = squared_residual(correlated, principal_subspace(correlated, same, 0.8, "it"))
    monkeypatch.setattr(kernel_pca, "_CELLS", 12 * 7)
    torch.testing.assert_close(squared_residual(correlated, principal_subspace(correlated, same, 0.8, "it")), whole)


@pytest.mark.parametrize("row", [torch.zeros(12), torch.full((12,), 3.1), normal(12).float()])
@pytest.mark.parametrize("n", [20, 200])
def test_features_that_are_all_alike_are_refused(row, n):
    with pytest.raises(UserError, match="the training features are all alike"):
        fit_on_features([TINY], of(row.repeat(n, 1)), None)


def test_a_subspace_that_is_everything_is_refused(correlated):
    with pytest.raises(UserError, match="takes all 12 directions, and then no feature has an error"):
        fit_on_features(["kpca-ood(kernel=cosine, explained=0.9999999999)"], of(correlated), None)


def test_zeros_duplicates_and_dead_units_get_finite_scores(correlated):
    h = torch.cat([correlated, correlated, torch.zeros(50, 12).double()])
    h[:, 3] = 0
    for detector in (TINY, "kpca-ood(kernel=cosine)", "kpca-cogau(size=400)"):
        (fitted,) = fit_on_features([detector], of(h), None).values()
        assert torch.isfinite(fitted.score(of(torch.zeros(2, 12)))).all()


def scores(detector, train, test):
    (fitted,) = fit_on_features([detector], of(train), None).values()
    return fitted.score(of(test))


def test_fusion_weighs_the_confidence_of_the_other_by_what_is_rebuilt(correlated):
    test = correlated + normal(300, 12, seed=3)
    error = scores(TINY, correlated, test)
    logits = of(test).logits.double()
    probability = logits.softmax(1).max(1).values
    torch.testing.assert_close(scores("kpca-ood(size=64, fuse=msp)", correlated, test), -(1 - error) * probability)
    torch.testing.assert_close(
        scores("kpca-ood(size=64, fuse=energy)", correlated, test), -(1 - error) * logits.logsumexp(1)
    )


@pytest.mark.parametrize("base", ["react(percentile=70.0)", "bats(width=0.5)"])
def test_what_clips_features_is_fused_with_the_error_of_the_clipped_ones(correlated, base):
    train, test = of(correlated), of(correlated + normal(300, 12, seed=3))
    head = torch.nn.Linear(12, 5)
    fused, alone = fit_on_features([f"kpca-ood(size=64, fuse={base})", base], train, head).values()
    cut, cut_test = (of(alone.method.clipped(f.penultimate, alone.state)) for f in (train, test))
    assert not torch.equal(cut.penultimate, train.penultimate)
    (bare,) = fit_on_features([TINY], cut, None).values()
    torch.testing.assert_close(fused.score(test), (1 - bare.score(cut_test)) * alone.score(test))
    landmarks = fit_on_features([f"kpca-cogau(size=20, fuse={base})"], train, head).popitem()[1].state["landmarks"]
    doubtful = alone.score(train).argsort(descending=True, stable=True)[:20]
    torch.testing.assert_close(landmarks, on_sphere(cut.penultimate[doubtful].double()))


def test_an_error_beyond_one_does_not_turn_the_fused_score(correlated):
    train, test = correlated, 100 * correlated
    assert scores("kpca-ood(kernel=linear)", train, test).min() > 1
    fused = scores("kpca-ood(kernel=linear, fuse=msp)", train, test)
    assert fused.max() < 0
    assert fused.min() > -2e-6  # the least confident of all


def test_what_has_no_confidence_is_not_fused():
    with pytest.raises(UserError, match="kpca-ood: fuse must be msp, energy, react or bats, got knn"):
        fit_on_features(["kpca-ood(fuse=knn)"], None, None)


def test_a_fused_detector_survives_saving(correlated, tmp_path):
    (fitted,) = fit_on_features(["kpca-ood(size=64, fuse=energy(temperature=2))"], of(correlated), None).values()
    fitted.save(tmp_path / "d.safetensors")
    loaded = FittedDetector.load(tmp_path / "d.safetensors")
    assert loaded.method == fitted.method
    assert torch.equal(loaded.score(of(correlated)), fitted.score(of(correlated)))
