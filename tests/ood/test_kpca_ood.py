import pytest
import torch
from sklearn.decomposition import PCA

from holdfast import stats
from holdfast.models import Features
from holdfast.ood import KernelPCAOOD, fit_on_features


def of(h):
    return Features(logits=h[:, :4], penultimate=h, y=torch.zeros(len(h), dtype=torch.int64))


@pytest.fixture(scope="module")
def sets():
    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn(16, 16, generator=rng)
    inside = (torch.randn(400, 16, generator=rng) @ mixing).relu() + 0.1
    return inside[:300], inside[300:], torch.randn(100, 16, generator=rng).relu() * 3


def fitted(detector, h):
    (found,) = fit_on_features([detector], of(h), None).values()
    return found


@pytest.mark.parametrize("kernel", ["cosine", "linear"])
def test_without_a_gaussian_kernel_it_is_the_error_of_pca(sets, kernel):
    train, test, _ = sets
    detector = fitted(KernelPCAOOD(kernel=kernel, explained=0.7), train)
    train, queries = (
        (h / h.norm(dim=1, keepdim=True) if kernel == "cosine" else h).double().numpy() for h in (train, test)
    )
    pca = PCA(n_components=detector.state["basis"].shape[1]).fit(train)
    rebuilt = pca.inverse_transform(pca.transform(queries))
    expected = torch.from_numpy(queries - rebuilt).norm(dim=1)
    torch.testing.assert_close(detector.score(of(test)), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("detector", [KernelPCAOOD(size=128), KernelPCAOOD(kernel="cosine")])
def test_the_length_of_a_feature_does_not_matter(sets, detector):
    train, test, _ = sets
    found = fitted(detector, train)
    torch.testing.assert_close(found.score(of(10 * test)), found.score(of(test)), atol=1e-6, rtol=0)


def test_which_random_features_are_drawn_hardly_matters(sets):
    train, test, out = sets
    found = [fitted(KernelPCAOOD(size=512, seed=seed), train) for seed in range(3)]
    assert not torch.equal(found[0].state["frequencies"], found[1].state["frequencies"])
    aurocs = torch.tensor([stats.auroc(f.score(of(test)), f.score(of(out))) for f in found])
    assert aurocs.std() < 0.01


def test_a_wider_kernel_tends_to_the_cosine_one(sets):
    """With a small gamma ``exp(-gamma d^2)`` is linear in the inner product, so the errors rank alike."""
    train, test, out = sets
    queries = of(torch.cat([test, out]))
    wide = fitted(KernelPCAOOD(gamma=1e-3, size=1024, explained=0.85), train).score(queries)
    cosine = fitted(KernelPCAOOD(kernel="cosine", explained=0.85), train).score(queries)
    assert torch.corrcoef(torch.stack([wide, cosine]))[0, 1] > 0.98
