import numpy as np
import pytest
import torch
from scipy.spatial import distance as between
from scipy.stats import weibull_min

from holdfast.models import Features
from holdfast.ood import OpenMax


def of(logits, y):
    return Features(logits=logits, y=y)


@pytest.fixture(scope="module")
def sets():
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(5, (400,), generator=rng)
    logits = 2 * torch.randn(400, 5, generator=rng) + 6 * torch.nn.functional.one_hot(y, 5)
    queries = 4 * torch.randn(30, 5, generator=rng)
    return of(logits, y), of(queries, torch.zeros(30, dtype=torch.int64))


def unknown(known, queries, detector):
    """The probability of the unknown class, image by image, with the Weibull fit of the paper's library."""
    z, y = known.logits.double().numpy(), known.y.numpy()

    def far(a, b):
        euclidean = between.euclidean(a, b)
        return euclidean if detector.distance == "euclidean" else euclidean / 2 + between.cosine(a, b)

    models = []
    for c in range(5):
        right = z[(y == c) & (z.argmax(1) == c)]
        mean = right.mean(0)
        tail = np.sort([far(row, mean) for row in right])[-detector.tail :]
        shift = 10_000 - tail.min()
        with np.errstate(over="ignore"):  # the search tries shapes that are far too large
            shape, _, scale = weibull_min.fit(tail + shift, 10_000 / tail.std(), floc=0, scale=10_000)
        models.append((mean, shift, shape, scale))
    found = []
    for row in queries.logits.double().numpy():
        omega = np.zeros(5)
        alpha = min(detector.alpha, 5)
        for rank, c in enumerate(np.argsort(-row)[:alpha], start=1):
            omega[c] = (alpha + 1 - rank) / alpha
        w = np.array([weibull_min.cdf(far(row, mean) + s, k, scale=sc) for mean, s, k, sc in models])
        revised = row * (1 - w * omega)
        exponentials = np.exp([*revised, (row - revised).sum()])
        found.append(exponentials[-1] / exponentials.sum())
    return np.array(found)


@pytest.mark.parametrize(
    "detector", [OpenMax(), OpenMax(alpha=5, tail=25), OpenMax(alpha=10), OpenMax(distance="eucos", tail=12)]
)
def test_the_probability_of_the_unknown_is_that_of_the_paper_s_algorithm(sets, detector):
    known, queries = sets
    scores = detector.score(queries, detector.fit_features(known, None))
    np.testing.assert_allclose(torch.sigmoid(scores), unknown(known, queries, detector), rtol=0.02, atol=2e-3)


def test_where_no_distance_is_unusual_the_unknown_is_one_more_class_of_logit_0(sets):
    known, _ = sets
    state = dict(OpenMax().fit_features(known, None))
    state["location"] = state["location"] + 1e6
    scores = OpenMax().score(known, state)
    torch.testing.assert_close(scores, -torch.logsumexp(known.logits.double(), 1))


def test_an_image_of_none_of_the_classes_is_unknown(sets):
    known, _ = sets
    state = OpenMax().fit_features(known, None)
    alien = of(torch.full((1, 5), 30.0), torch.zeros(1, dtype=torch.int64))
    assert OpenMax().score(alien, state).item() > OpenMax().score(known, state).quantile(0.99)


def test_a_class_of_one_image_and_classes_without_any_survive(sets):
    known, queries = sets
    y = torch.zeros_like(known.y)
    y[3] = 2
    state = OpenMax().fit_features(of(known.logits, y), None)
    assert (state["scale"] > 0).all()
    assert torch.isfinite(OpenMax().score(queries, state)).all()
    # A class without training images is unknown, however near the logits are to anything.
    row = of(torch.tensor([[0.0, 0.0, 0.0, 9.0, 0.0]]), torch.zeros(1, dtype=torch.int64))
    assert torch.sigmoid(OpenMax().score(row, state)).item() > 0.9


def test_images_that_are_all_alike_and_huge_logits_survive():
    known = of(torch.tensor([[50.0, 0.0]]).repeat(30, 1), torch.zeros(30, dtype=torch.int64))
    state = OpenMax().fit_features(known, None)
    scores = OpenMax().score(of(torch.tensor([[50.0, 0.0], [1e4, -1e4], [40.0, 0.0]]), torch.zeros(3).long()), state)
    assert torch.isfinite(scores).all()
    assert scores[0] < scores[2]
