import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from torch import nn

from holdfast.errors import UserError
from holdfast.models import Features
from holdfast.ood import ViM


def linear(d=12, k=3, seed=0):
    head = nn.Linear(d, k)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(k, d, generator=rng))
        head.bias.copy_(torch.randn(k, generator=rng))
    return head


def of(h, head):
    with torch.no_grad():
        return Features(logits=head(h), penultimate=h, y=torch.zeros(len(h), dtype=torch.int64))


@pytest.fixture(scope="module")
def head():
    return linear()


@pytest.fixture(scope="module")
def sets(head):
    rng = torch.Generator().manual_seed(1)
    scales = torch.linspace(3, 0.2, 12)
    return of((scales * torch.randn(500, 12, generator=rng)).relu(), head), of(
        torch.randn(40, 12, generator=rng).relu(), head
    )


def reference(known, queries, head, dim):
    """The paper's code in NumPy."""
    w, b = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    u = -np.linalg.pinv(w) @ b
    x, q = known.penultimate.double().numpy() - u, queries.penultimate.double().numpy() - u
    values, vectors = np.linalg.eig(x.T @ x / len(x))
    residual = vectors[:, np.argsort(-values)[dim:]]
    alpha = known.logits.double().numpy().max(1).mean() / np.linalg.norm(x @ residual, axis=1).mean()
    return alpha * np.linalg.norm(q @ residual, axis=1), queries.logits.double().numpy()


@pytest.mark.parametrize("dim", [1, 4, 11])
def test_the_score_is_that_of_the_paper_s_code(sets, head, dim):
    known, queries = sets
    detector = ViM(dim=dim)
    virtual, logits = reference(known, queries, head, dim)
    scores = detector.score(queries, detector.fit_features(known, head))
    np.testing.assert_allclose(scores, virtual - logsumexp(logits, axis=1), rtol=1e-6)
    share = softmax(np.concatenate([logits, virtual[:, None]], axis=1), axis=1)[:, -1]
    np.testing.assert_allclose(torch.sigmoid(scores), share, rtol=1e-6)


def test_half_of_the_directions_are_principal_unless_told_otherwise(sets, head):
    known, queries = sets
    half = ViM(dim=6)
    assert torch.equal(
        ViM().score(queries, ViM().fit_features(known, head)), half.score(queries, half.fit_features(known, head))
    )


def test_moving_within_the_principal_space_and_across_the_classes_weights_changes_nothing(sets, head):
    known, queries = sets
    state = ViM(dim=8).fit_features(known, head)
    blind = torch.cat([state["residual"].T, head.weight.detach().double()])
    direction = torch.linalg.svd(blind).Vh[-1]  # 4 residual directions and 3 classes leave 5 of 12
    assert (blind @ direction).abs().max() < 1e-9
    moved = Features(
        logits=queries.logits, penultimate=(queries.penultimate.double() + 50 * direction).float(), y=queries.y
    )
    torch.testing.assert_close(of(moved.penultimate, head).logits, queries.logits, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ViM().score(moved, state), ViM().score(queries, state), atol=1e-4, rtol=1e-4)


def test_on_training_images_the_virtual_logit_is_as_large_as_the_largest_logit(sets, head):
    known, _ = sets
    for dim in (3, 9):  # the scale belongs to the dimension
        state = ViM(dim=dim).fit_features(known, head)
        virtual = ViM().score(known, state) + torch.logsumexp(known.logits.double(), 1)
        assert virtual.mean() == pytest.approx(known.logits.double().amax(1).mean().item())


def test_a_principal_space_of_all_directions_is_refused(sets, head):
    with pytest.raises(UserError, match="vim: dim must be below the 12 features of the model, got 12"):
        ViM(dim=12).fit_features(sets[0], head)


def test_dead_units_shrink_the_default_principal_space_and_are_no_residual_of_an_explicit_one(head):
    rng = torch.Generator().manual_seed(2)
    h = torch.cat([torch.randn(300, 4, generator=rng).relu(), torch.zeros(300, 8)], dim=1)
    bare = nn.Linear(12, 3, bias=False)  # with a bias the origin moves, and dead units are at a distance from it
    with torch.no_grad():
        bare.weight.copy_(head.weight)
    known = of(h, bare)
    state = ViM().fit_features(known, bare)
    assert state["residual"].shape == (12, 9)
    assert float(state["alpha"]) < 1e3
    with pytest.raises(UserError, match="vary in 4 directions, so a principal space of 5 leaves none"):
        ViM(dim=5).fit_features(known, bare)


def test_a_model_without_a_last_linear_layer_is_refused(sets):
    with pytest.raises(UserError, match="vim reads the model's last linear layer"):
        ViM().fit_features(sets[0], None)
