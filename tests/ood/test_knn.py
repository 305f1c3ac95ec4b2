import pytest
import torch

from holdfast.errors import UserError
from holdfast.models import Features
from holdfast.ood import KNN, nearest


def of(h):
    return Features(logits=h[:, :2], penultimate=h, y=torch.zeros(len(h), dtype=torch.int64))


@pytest.fixture(scope="module")
def sets():
    rng = torch.Generator().manual_seed(0)
    return of(torch.randn(300, 16, generator=rng).relu()), of(torch.randn(40, 16, generator=rng).relu())


def brute_force(detector, bank, queries):
    bank, queries = bank.penultimate.double(), queries.penultimate.double()
    if detector.normalise:
        bank, queries = (h / h.norm(dim=1, keepdim=True).clamp(min=1e-9) for h in (bank, queries))
    distances = (queries[:, None] - bank[None]).square().sum(2).sqrt()
    return distances.sort(dim=1).values[:, detector.k - 1]


@pytest.mark.parametrize("detector", [KNN(k=1), KNN(k=7), KNN(k=300), KNN(k=7, normalise=False)])
def test_the_score_is_the_kth_smallest_distance(sets, detector):
    bank, queries = sets
    scores = detector.score(queries, detector.fit_features(bank, None))
    assert torch.allclose(scores, brute_force(detector, bank, queries), atol=1e-6)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_bank_of_thousands_is_searched_exactly(normalise):
    rng = torch.Generator().manual_seed(1)
    bank, queries = (of(torch.randn(n, 6, generator=rng).relu()) for n in (5003, 50))
    bank.penultimate[17:19] = 0  # images that excite nothing lie off the sphere
    detector = KNN(k=20, normalise=normalise)
    scores = detector.score(queries, detector.fit_features(bank, None))
    assert torch.allclose(scores, brute_force(detector, bank, queries), atol=1e-5)


def test_blocks_do_not_change_the_score(sets, monkeypatch):
    bank, queries = sets
    detector = KNN(k=5)
    state = detector.fit_features(bank, None)
    whole = detector.score(queries, state)
    monkeypatch.setattr(nearest, "_PAIRS", 300 * 7)
    monkeypatch.setattr(nearest, "_QUERIES", 7)
    assert torch.allclose(detector.score(queries, state), whole, atol=1e-6)


def test_a_training_feature_is_its_own_nearest_neighbour(sets):
    bank, _ = sets
    assert torch.equal(KNN(k=1).score(bank, KNN(k=1).fit_features(bank, None)), torch.zeros(300).double())


def test_the_length_of_a_feature_does_not_matter(sets):
    bank, queries = sets
    detector = KNN(k=5)
    state = detector.fit_features(bank, None)
    longer = of(10 * queries.penultimate)
    assert torch.allclose(detector.score(longer, state), detector.score(queries, state), atol=1e-6)
    bare = KNN(k=5, normalise=False)
    assert (bare.score(longer, bare.fit_features(bank, None)) > bare.score(queries, state)).all()


def test_a_feature_of_zeros_gets_a_finite_score(sets):
    detector = KNN(k=5)
    score = detector.score(of(torch.zeros(1, 16)), detector.fit_features(sets[0], None))
    assert score.item() == pytest.approx(1, abs=1e-6)


def test_a_fraction_of_the_bank_is_a_fixed_random_subset(sets):
    bank, _ = sets
    kept = KNN(k=5, fraction=0.1).fit_features(bank, None)["bank"]
    everything = KNN(k=5).fit_features(bank, None)["bank"]
    rows = [int((everything == row).all(1).nonzero()[0]) for row in kept]
    assert len(kept) == 30
    assert rows == sorted(set(rows))
    assert max(rows) > 100  # not the first rows: training sets come sorted by class
    assert torch.equal(kept, KNN(k=5, fraction=0.1).fit_features(bank, None)["bank"])


def test_more_neighbours_than_bank_are_refused(sets):
    with pytest.raises(UserError, match="knn: k must be at most the 300 training features in the bank, got 301"):
        KNN(k=301).fit_features(sets[0], None)
