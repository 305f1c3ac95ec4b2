import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.data import LongTail, SyntheticOutliers, load_data
from holdfast.errors import UserError
from holdfast.models import build_model, weights_hash
from holdfast.ood import PASCL, OutlierExposure
from holdfast.ood.pascl import contrast, tail_classes
from holdfast.run import Run
from holdfast.training import Adam, Companion, Step, fit

COUNTS = torch.tensor([50, 30, 18, 11, 6, 4, 2, 1, 1, 1])


def units(n, seed):
    return F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def batch(n=8, m=5):
    rng = torch.Generator().manual_seed(0)
    x, view, out = (torch.rand(k, 1, 8, 8, generator=rng) for k in (n, n, m))
    return x, torch.arange(n) % 10, view, Companion(out, torch.zeros(m, dtype=torch.int64))


def make(name="convnet"):
    return build_model(name, num_classes=10, image_shape=(1, 8, 8), run=Run())


def given(method, model, view, outliers):
    heads = method.heads(model, torch.zeros(2, 1, 8, 8))
    return Step(model=model, counts=COUNTS, views=(view,), companions={"outliers": outliers}, heads=heads)


def test_the_contrast_is_that_of_three_loops():
    known, unknown, y, t = units(8, 0), units(5, 1), torch.tensor([7, 7, 8, 9, 7, 7, 8, 9]), 0.07
    total = 0.0
    for i in range(8):
        candidates = [math.exp(float(known[i] @ known[a]) / t) for a in range(8) if a != i]
        candidates += [math.exp(float(known[i] @ o) / t) for o in unknown]
        like = [p for p in range(8) if p != i and y[p] == y[i]]
        total -= sum(math.log(math.exp(float(known[i] @ known[p]) / t) / sum(candidates)) for p in like) / len(like)
    assert contrast(known, y, unknown, t).item() == pytest.approx(total / 8, rel=1e-4)


def test_outliers_are_negatives_only_in_any_order():
    known, unknown, y = units(8, 0), units(5, 1), torch.tensor([7, 7, 8, 9, 7, 7, 8, 9])
    loss = contrast(known, y, unknown, 0.1)
    torch.testing.assert_close(contrast(known, y, unknown.roll(2, 0), 0.1), loss)
    # No outlier is drawn towards another: the gradient with respect to one does not depend on the others' directions
    # but through the share of the probability, and pushes every one of them away from what is known.
    free = unknown.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(contrast(known, y, free, 0.1), free)
    weights = gradient @ torch.linalg.pinv(known)
    torch.testing.assert_close(weights @ known, gradient, atol=1e-5, rtol=1e-4)
    assert (contrast(known, y, unknown * 0, 0.1) < loss) or (unknown @ known.T).max() > 0


def test_frequent_classes_take_no_part():
    """Neither anchors nor candidates: the contrastive gradient of their projections is exactly 0."""
    method, model = PASCL(weight=0), make()
    x, y, view, outliers = batch()
    step = given(method, model, view, outliers)
    projected = []
    step.heads["projection"].register_forward_hook(lambda module, inputs, output: projected.append(output))
    with_term = method(model, x, y, step)
    (gradient,) = torch.autograd.grad(with_term, projected[0])
    rare = torch.cat([y, y]) >= 6
    assert gradient[:16][~rare].abs().max() == 0
    assert gradient[:16][rare].abs().amax(1).min() > 0
    assert gradient[16:].abs().amax(1).min() > 0


def test_without_contrast_it_is_outlier_exposure_on_both_views_to_the_last_bit():
    x, y, view, outliers = batch()
    plain, model = PASCL(contrast=0), make()
    assert not plain.heads(model, x)
    mine = plain(model, x, y, given(plain, model, view, outliers))
    theirs = OutlierExposure()(model, torch.cat([x, view]), torch.cat([y, y]), Step(companions={"outliers": outliers}))
    assert torch.equal(mine, theirs)


def test_a_batch_without_rare_images_keeps_the_graph_and_adds_nothing():
    x, _, view, outliers = batch()
    method, model, y = PASCL(), make(), torch.arange(8) % 3
    step = given(method, model, view, outliers)
    loss = method(model, x, y, step)
    plain = PASCL(contrast=0)
    torch.testing.assert_close(loss, plain(model, x, y, given(plain, model, view, outliers)))
    loss.backward()
    assert all(p.grad is not None for p in step.heads["projection"].parameters())


@pytest.mark.parametrize(
    ("share", "tail"), [(0.4, [6, 7, 8, 9]), (0.9, list(range(1, 10))), (0, []), (1, list(range(10)))]
)
def test_the_tail_is_the_share_of_the_rarest_classes(share, tail):
    assert tail_classes(COUNTS, share).nonzero().flatten().tolist() == tail
    assert tail_classes(COUNTS.flip(0), share).sum() == len(tail)


def test_the_tail_does_not_need_sorted_classes():
    assert tail_classes(torch.tensor([5, 100, 7, 80]), 0.5).tolist() == [True, False, True, False]


def test_the_long_tail_is_the_paper_s():
    sizes = LongTail(rho=100).sizes(5000, 10)
    assert sizes == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(sizes) == 12_406


def test_a_model_without_a_linear_end_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh())
    with pytest.raises(UserError, match="pascl: the model must end in a linear layer"):
        PASCL().heads(model, torch.zeros(2, 1, 8, 8))


def test_training_learns_the_projection_too_and_leaves_a_model_of_its_own_names(tmp_path):
    run, data = Run(out=tmp_path), load_data("digits")
    train = LongTail(rho=20)(data.train, run=run)
    outliers = SyntheticOutliers(kinds=("jigsaw",))(train, run=run)
    settings = {"epochs": 2, "batch_size": 64, "optimizer": Adam(), "transforms": ["crop(padding=1)"]}
    model = make()
    loss = fit(model, train, objective=PASCL(), companions={"outliers": outliers}, **settings, run=run).history
    assert loss[1]["train_loss"] < loss[0]["train_loss"]
    assert list(model.state_dict()) == list(make().state_dict())
    assert "objective_heads.projection.layers.0.weight" in torch.load(tmp_path / "checkpoint.pt")["model"]
    plain = make()
    fit(plain, train, objective=PASCL(contrast=0), companions={"outliers": outliers}, **settings, run=Run())
    assert weights_hash(plain) != weights_hash(model)
