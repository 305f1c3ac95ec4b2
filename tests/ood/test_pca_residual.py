import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from holdfast.errors import UserError
from holdfast.models import Features
from holdfast.ood import PCAResidual


def of(h):
    return Features(logits=torch.zeros(len(h), 2), penultimate=h, y=torch.zeros(len(h), dtype=torch.int64))


@pytest.mark.parametrize("explained", [0.5, 0.9])
def test_the_score_is_the_reconstruction_error_of_scikit_learn_s_pca(explained):
    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, 8, generator=rng)
    known, queries = (of(torch.randn(n, 8, generator=rng) @ mixing + 3) for n in (300, 40))
    pca = PCA(explained, svd_solver="full").fit(known.penultimate.double().numpy())
    q = queries.penultimate.double().numpy()
    expected = np.linalg.norm(q - pca.inverse_transform(pca.transform(q)), axis=1)
    detector = PCAResidual(explained=explained)
    np.testing.assert_allclose(detector.score(queries, detector.fit_features(known, None)), expected, rtol=1e-5)


def test_a_dead_unit_that_fires_is_seen():
    rng = torch.Generator().manual_seed(0)
    h = torch.cat([torch.randn(200, 3, generator=rng), torch.zeros(200, 1)], dim=1)
    state = PCAResidual(explained=0.99).fit_features(of(h), None)
    fired = h.clone()
    fired[:, 3] = 2
    torch.testing.assert_close(PCAResidual().score(of(fired), state), torch.full((200,), 2.0).double())


def test_a_space_of_all_directions_and_features_that_are_all_alike_are_refused():
    with pytest.raises(UserError, match=r"pca-residual: it takes all 3 directions to explain 0.99"):
        PCAResidual(explained=0.99).fit_features(of(torch.eye(3).repeat(4, 1) * torch.arange(1, 13)[:, None]), None)
    with pytest.raises(UserError, match="pca-residual: the training features are all alike"):
        PCAResidual().fit_features(of(torch.ones(20, 3)), None)
