"""The search for forget sets that resist, and the projection below it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from holdfast.errors import UserError
from holdfast.models import predict
from holdfast.run import Run
from holdfast.training import SGD
from holdfast.unlearning import Retrain, WorstCaseForget
from holdfast.unlearning.projection import capped_simplex

SHORT = {"rounds": 3, "epochs": 2, "step": 2e-3, "weight_step": 0.5, "crop": None, "flip": None}


@given(n=st.integers(1, 60), share=st.floats(0, 1), seed=st.integers(0, 50), scale=st.sampled_from([0.01, 1.0, 100.0]))
def test_the_projection_is_in_the_set(n, share, seed, scale):
    a = scale * torch.randn(n, generator=torch.Generator().manual_seed(seed))
    p = capped_simplex(a, share * n)
    assert ((p >= 0) & (p <= 1)).all()
    assert float(p.sum()) == pytest.approx(share * n, abs=1e-6 * max(1, scale))
    torch.testing.assert_close(capped_simplex(p, share * n), p, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_no_point_of_the_set_is_nearer(seed):
    a = torch.randn(6, generator=torch.Generator().manual_seed(seed)).double().numpy()
    found = minimize(
        lambda p: ((p - a) ** 2).sum(),
        np.full(6, 0.5),
        bounds=[(0, 1)] * 6,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 3},
        options={"ftol": 1e-14},
    ).x
    assert np.allclose(capped_simplex(torch.as_tensor(a), 3).numpy(), found, atol=1e-5)


def test_each_row_is_projected_by_itself():
    a = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(capped_simplex(a, 2)[1], capped_simplex(a[1], 2))


def test_fifty_thousand_weights_keep_their_sum():
    a = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    assert float(capped_simplex(a, 4500).sum()) == pytest.approx(4500, abs=1e-6)


def test_impossible_sums_and_values_are_refused():
    with pytest.raises(UserError, match="cannot sum to 5"):
        capped_simplex(torch.zeros(4), 5)
    with pytest.raises(UserError, match="not finite"):
        capped_simplex(torch.tensor([0.0, float("nan")]), 1)


def test_the_set_has_the_size_asked_for_and_repeats_itself(convolutional, digits):
    method = WorstCaseForget(count=60, **SHORT)
    a, b = (method(convolutional, digits.train, run=Run(seed=1)) for _ in range(2))
    assert len(a.indices) == len(a.indices.unique()) == 60
    assert torch.equal(a.indices, b.indices)
    assert float(a.weights.sum()) == pytest.approx(60, abs=1e-4)
    assert len(a.objective) == 3


def test_a_retrained_model_knows_the_worst_case_and_not_the_easiest(convolutional, digits):
    losses = {}
    for seek in ("worst", "easiest"):
        found = WorstCaseForget(count=100, seek=seek, **SHORT)(convolutional, digits.train, run=Run(seed=2))
        chosen = torch.zeros(len(digits.train), dtype=torch.bool)
        chosen[found.indices] = True
        forget, retain = digits.train.select(chosen), digits.train.select(~chosen)
        method = Retrain(epochs=5, batch_size=64, optimizer=SGD(lr=0.05), crop=None, flip=None)
        model = method(convolutional, forget, retain, run=Run())
        losses[seek] = float(torch.nn.functional.cross_entropy(predict(model, forget, run=Run()), forget.y))
    assert losses["worst"] < 0.2 * losses["easiest"]


def test_whole_classes_are_found(convolutional, digits):
    found = WorstCaseForget(of="classes", count=2, **SHORT)(convolutional, digits.train, run=Run())
    assert len(found.classes) == 2
    assert set(digits.train.y[found.indices].tolist()) == {digits.classes.index(name) for name in found.classes}
    assert len(found.indices) == int(torch.isin(digits.train.y, digits.train.y[found.indices].unique()).sum())
    assert found.to_json()["classes"] == list(found.classes)
    assert found.sentence.startswith("Found the classes")


def test_the_gradient_of_the_weights():
    method = WorstCaseForget(gamma=0.25)
    w, losses = torch.rand(5, dtype=torch.float64, requires_grad=True), torch.rand(5, dtype=torch.float64)
    (expected,) = torch.autograd.grad((w * losses).sum() + 0.25 * w.square().sum(), w)
    torch.testing.assert_close(method.descent(w.detach(), losses), expected)
    # With a strong pull all weights become equal.
    even = WorstCaseForget(gamma=1e6)
    w = capped_simplex(torch.tensor([1.0, 1, 0, 0]), 2)
    for _ in range(50):
        w = capped_simplex(w - 1e-7 * even.descent(w, torch.rand(4)), 2)
    torch.testing.assert_close(w, torch.full((4,), 0.5, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("count", [5000, 1437])
def test_all_images_cannot_be_forgotten(count, convolutional, digits):
    with pytest.raises(UserError, match="can be forgotten"):
        WorstCaseForget(count=count)(convolutional, digits.train.select(slice(0, 1437)), run=Run())


def test_the_command_for_test_images_says_where_to_go(convolutional, digits):
    with pytest.raises(UserError, match="holdfast unlearn --forget 'worst-case-forget'"):
        WorstCaseForget().of_models({"a": convolutional}, digits.test, run=Run())
