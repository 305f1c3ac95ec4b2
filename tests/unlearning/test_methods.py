"""What each unlearner computes: identities that its definition demands, and what it does to a forgotten class."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from holdfast.compression import GlobalMagnitude
from holdfast.data import Images, concat
from holdfast.data.images import to_float
from holdfast.errors import UserError
from holdfast.methods import Callback
from holdfast.models import build_model, extract
from holdfast.run import Run
from holdfast.training import SGD, Constant, fit
from holdfast.unlearning import (
    FT,
    SCRUB,
    SSD,
    BadTeacher,
    BoundaryExpanding,
    BoundaryShrink,
    GradientAscent,
    InfluenceUnlearning,
    L1Sparse,
    NaturalMU,
    NegGradPlus,
    RandomLabel,
    SalUn,
    SFRon,
    UnlearnSparse,
    forgetting,
)
from holdfast.unlearning.boundary_expanding import _widen
from holdfast.unlearning.boundary_shrink import nearest_classes
from holdfast.unlearning.fine_tuning import grouped, wrong_labels
from holdfast.unlearning.gradients import importance, mean_gradient, most_salient
from holdfast.unlearning.influence_unlearning import inverse_fisher_times
from holdfast.unlearning.l1_sparse import _Penalised
from holdfast.unlearning.natural_mu import blend_masks, likeliest_others, partners
from holdfast.unlearning.scrub import distillation
from holdfast.unlearning.sfron import adaptive_ascent, balanced_mask

PLAIN = {"crop": None, "flip": None}
SHORT = {"epochs": 2, "batch_size": 64, **PLAIN}


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def distance(a, b):
    return math.sqrt(
        sum(float((p - q).detach().square().sum()) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    )


def gradients_of(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()))


def sgd(lr, **more):
    return SGD(lr=lr, momentum=0.9, nesterov=False, **{"weight_decay": 5e-4, **more})


# --- what becomes of a forgotten class ---------------------------------------------------------------------------

STRONG = [
    (GradientAscent(epochs=20, batch_size=32, optimizer=sgd(5e-3), clip=1.0, **PLAIN), 0.6),
    (NegGradPlus(alpha=0.8, epochs=3, optimizer=sgd(0.02), **PLAIN), 0.8),
    (RandomLabel(epochs=4, optimizer=sgd(0.05), batch_size=64, **PLAIN), 0.8),
    (SalUn(epochs=4, optimizer=sgd(0.05), batch_size=64, **PLAIN), 0.8),
    (L1Sparse(epochs=8, batch_size=64, optimizer=sgd(0.05), alpha=2e-3, **PLAIN), 0.8),
    (SFRon(epochs=4, batch_size=64, optimizer=sgd(0.02), ascent=5, **PLAIN), 0.8),
    (
        SCRUB(
            optimizer=sgd(0.01), schedule=Constant(), batch_size=64, forget_batch=32, epochs=6, max_epochs=2, **PLAIN
        ),
        0.8,
    ),
    (BadTeacher(epochs=6, batch_size=64, optimizer=sgd(0.05), **PLAIN), 0.8),
    (NaturalMU(epochs=3, batch_size=64, delta=0.0, **PLAIN), 0.8),
    (BoundaryShrink(epochs=6, optimizer=sgd(0.01), batch_size=32), 0.8),
    (BoundaryExpanding(epochs=6, optimizer=sgd(1e-3), batch_size=32), 0.8),
    (SSD(alpha=2.0, strength=0.5, batch_size=16), 0.6),
]


@pytest.mark.parametrize(("method", "accuracy"), STRONG, ids=lambda v: v.id if hasattr(v, "id") else "")
def test_a_class_is_forgotten_and_the_others_are_kept(method, accuracy, original, split):
    run = Run(seed=1)
    before, after = (
        forgetting(*(extract(model, images, run=run) for images in split))
        for model in (original, method(original, split[0], split[1], run=run))
    )
    assert before.ua < 0.05
    assert after.ua > 0.6
    assert after.ta > accuracy


# --- identities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("twin", [L1Sparse(alpha=0, **SHORT), NegGradPlus(alpha=1, **SHORT)], ids=lambda m: m.id)
def test_without_its_own_term_it_is_fine_tuning(twin, original, split):
    run = Run(seed=2)
    assert same(twin(original, *split[:2], run=run), FT(**SHORT)(original, *split[:2], run=run))


def test_without_ascent_sfron_is_fine_tuning(original, split):
    named = {**SHORT, "optimizer": sgd(0.01), "schedule": Constant()}
    a, b = (m(original, *split[:2], run=Run()) for m in (SFRon(ascent=0, **named), FT(**named)))
    assert same(a, b)


def test_with_all_weights_salient_salun_is_random_labels(original, split):
    assert same(
        SalUn(share=1, **SHORT)(original, *split[:2], run=Run()), RandomLabel(**SHORT)(original, *split[:2], run=Run())
    )


def test_weights_that_are_not_salient_stay_to_the_last_bit(convolutional, split):
    masks = most_salient(mean_gradient(convolutional, split[0], run=Run()), 0.5)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(total / 2)
    unlearned = dict(SalUn(**SHORT)(convolutional, *split[:2], run=Run()).named_parameters())
    moved = 0
    for name, before in convolutional.named_parameters():
        assert torch.equal(unlearned[name][~masks[name]], before[~masks[name]])
        moved += int((unlearned[name] != before).sum())
    assert moved > 0.9 * total / 2


def test_the_soft_mask_holds_a_shrinking_share(original, split):
    held = []
    start = {name: p.detach().clone() for name, p in original.named_parameters()}

    class Look(Callback):
        def on_step(self, state):
            same = [(p == start[name]).float().flatten() for name, p in state.model.named_parameters()]
            held.append(float(torch.cat(same).mean()))

    method = SalUn(masking="soft", share=0.4, **SHORT)
    callbacks = [*method._callbacks(original, split[0], Run()), Look()]
    fit(copy.deepcopy(original), split[0], epochs=4, batch_size=32, callbacks=callbacks, run=Run())
    steps = len(held)
    assert held[0] == pytest.approx(0.6 * (1 - 1 / steps), abs=0.01)
    assert held[-1] < 0.02
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(held))


@given(classes=st.integers(2, 12), seed=st.integers(0, 99))
def test_a_wrong_label_is_never_the_true_one(classes, seed):
    y = torch.arange(60) % classes
    drawn = wrong_labels(y, classes, torch.Generator().manual_seed(seed))
    assert (drawn != y).all()
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < classes


def test_the_penalty_fades_to_nothing(original):
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    norm = sum(float(p.detach().abs().sum()) for p in original.parameters())

    class Epoch:
        def __init__(self, epoch):
            self.epoch = epoch

        def seen(self, logits):
            return logits

    penalised = _Penalised(0.5, 5)
    plain = float(F.cross_entropy(original(x), y).detach())
    for epoch, factor in enumerate([0.5, 0.4, 0.3, 0.2, 0.1, 0.0]):
        extra = float(penalised(original, x, y, Epoch(epoch)).detach()) - plain
        assert extra == pytest.approx(factor * norm, rel=1e-4, abs=1e-4)


@given(st.integers(0, 50))
def test_adaptive_ascent_without_temper_is_minus_the_loss(seed):
    rng = torch.Generator().manual_seed(seed)
    logits, y = torch.randn(9, 5, generator=rng), torch.randint(5, (9,), generator=rng)
    torch.testing.assert_close(adaptive_ascent(logits, y, 0), -F.cross_entropy(logits, y))
    # Weighted less, samples of large loss lower the mean.
    assert adaptive_ascent(logits, y, 0.5) >= adaptive_ascent(logits, y, 0)
    n = len(y)
    losses = F.cross_entropy(logits, y, reduction="none").double()
    torch.testing.assert_close(adaptive_ascent(logits, y, 1).double(), -n / (1 / losses).sum(), rtol=1e-4, atol=1e-6)


def test_weights_that_matter_to_neither_set_are_trainable():
    forget = {"w": torch.tensor([0.0, 2.0, 1.0])}
    assert balanced_mask(forget, {"w": torch.tensor([0.0, 1.0, 1.5])}, 1.0)["w"].tolist() == [True, True, False]


def test_a_slow_sfron_hardly_moves(original, split):
    named = {**SHORT, "optimizer": sgd(0.01), "ascent": 1.0}
    quick, slow = (SFRon(slow=s, **named)(original, *split[:2], run=Run()) for s in (1.0, 1e-3))

    assert 0 < distance(slow, original) < 0.05 * distance(quick, original)


def test_importance_is_the_mean_of_squared_gradients_of_batches(original, split):
    images = split[0].select(slice(0, 10))
    found = importance(original, images, run=Run(), batch_size=1)
    expected = {name: torch.zeros_like(p) for name, p in original.named_parameters()}
    for i in range(10):
        loss = F.cross_entropy(original(to_float(images.x[i : i + 1])), images.y[i : i + 1])
        for name, g in zip(expected, gradients_of(loss, original), strict=True):
            expected[name] += g.square() / 10
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-9)


def test_the_mean_gradient_is_that_of_all_images_together(original, split):
    images = split[0].select(slice(0, 50))
    found = mean_gradient(original, images, run=Run(), batch_size=16)
    loss = F.cross_entropy(original(to_float(images.x)), images.y)
    for name, g in zip(found, gradients_of(loss, original), strict=True):
        torch.testing.assert_close(found[name], g, rtol=1e-3, atol=1e-7)


@given(alpha=st.floats(0.01, 100), strength=st.floats(0, 2), seed=st.integers(0, 20))
def test_dampening_never_enlarges_a_weight(alpha, strength, seed):
    rng = torch.Generator().manual_seed(seed)
    of_all, of_forget = (torch.rand(50, generator=rng) * (torch.rand(50, generator=rng) > 0.3) for _ in range(2))
    factor = SSD(alpha=alpha, strength=strength).factor(of_all, of_forget)
    assert ((factor >= 0) & (factor <= 1)).all()
    assert (factor[of_forget <= alpha * of_all] == 1).all()


@pytest.mark.parametrize("measure", ["loss", "output"])
def test_with_a_high_threshold_nothing_is_dampened(measure, original, split):
    assert same(SSD(alpha=1e12, measure=measure)(original, *split[:2], run=Run()), original)


def test_the_damped_inverse_is_that_of_the_dense_matrix():
    rng = torch.Generator().manual_seed(0)
    gradients, vector = torch.randn(40, 8, generator=rng), torch.randn(8, generator=rng)
    fisher = gradients.double().T @ gradients.double() / 40
    dense = fisher + 0.1 * fisher.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    expected = torch.linalg.solve(dense, vector.double())
    torch.testing.assert_close(inverse_fisher_times(gradients, vector, 0.1).double(), expected, rtol=1e-5, atol=1e-6)


def test_influence_brings_logistic_regression_nearer_to_retraining(digits):
    """Twenty images leave a small training set; with weight decay the loss has one optimum."""
    images = digits.train.select(slice(0, 300))
    chosen = torch.zeros(300, dtype=torch.bool)
    chosen[:20] = True
    forget, retain = images.select(chosen), images.select(~chosen)

    def optimum(on):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        x, y = to_float(on.x).double(), on.y
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, tolerance_grad=1e-10)

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) + 0.05 * sum(p.square().sum() for p in model.parameters())
            loss.backward()
            return loss

        optimizer.step(closure)
        return model.float()

    before, after = optimum(images), optimum(retain)
    moved = InfluenceUnlearning(samples=280)(before, forget, retain, run=Run())

    assert distance(moved, after) < 0.5 * distance(before, after)
    assert same(InfluenceUnlearning(alpha=0, samples=50)(before, forget, retain, run=Run()), before)


def test_the_nearest_class_is_never_the_true_one_and_often_fools_the_model(original, split):
    labels = nearest_classes(original, split[0], eps=0.1, run=Run())
    assert (labels != split[0].y).all()
    assert len(labels.unique()) > 1


def test_a_class_of_its_own_leaves_the_other_logits_alone(original):
    x = torch.rand(5, 1, 8, 8)
    before = original(x)
    wide = copy.deepcopy(original)
    head = [m for m in wide.modules() if isinstance(m, nn.Linear)][-1]
    _widen(head, Run())
    assert wide(x).shape == (5, 11)
    torch.testing.assert_close(wide(x)[:, :10], before)


def test_expanding_needs_a_linear_head(split):
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(64, 10)

        def forward(self, x):
            return self.body(x.flatten(1)).tanh()

    with pytest.raises(UserError, match="linear layer"):
        BoundaryExpanding()(Strange(), *split[:2], run=Run())


@given(height=st.integers(2, 33), width=st.integers(2, 33), delta=st.floats(-1, 1))
def test_the_four_masks_are_weights_and_turn_into_one_another(height, width, delta):
    down, across, valley_down, valley_across = blend_masks(height, width, delta)
    for mask in (down, across, valley_down, valley_across):
        assert mask.shape == (height, width)
        assert ((mask >= 0) & (mask <= 1)).all()
    turned = blend_masks(width, height, delta)
    assert torch.equal(across, turned[0].T)
    assert torch.equal(valley_across, turned[2].T)


@pytest.mark.parametrize(("delta", "mean"), [(0, 0.469), (-0.053, 0.419), (-0.19, 0.303)])
def test_the_mean_weights_are_the_published_ones(delta, mean):
    assert float(torch.stack(blend_masks(32, 32, delta)).mean()) == pytest.approx(mean, abs=2e-3)


def test_blends_are_the_forgotten_or_the_retained_image_at_the_ends(original, split):
    forget, retain = split[0].select(slice(0, 6)), split[1]
    for delta, source in ((1.0, forget), (-1.0, retain)):
        hybrids = NaturalMU(delta=delta).hybrids(original, forget, retain, run=Run())
        assert len(hybrids) == 24
        known = {x.numpy().tobytes(): int(y) for x, y in zip(source.x, source.y, strict=True)}
        for x, y in zip(hybrids.x, hybrids.y.tolist(), strict=True):
            assert known[x.numpy().tobytes()] == y or source is forget
    assert not (hybrids.y == 3).any()


def test_partners_are_of_the_wanted_class_and_come_again_last():
    y = torch.tensor([0, 0, 1, 1, 1, 2])
    classes = torch.tensor([[0, 1], [0, 1], [0, 2]])
    chosen = partners(classes, y, rng=torch.Generator().manual_seed(0))
    assert torch.equal(y[chosen], classes)
    zeros = chosen[classes == 0]
    assert set(zeros[:2].tolist()) == {0, 1}  # both have come before one comes again
    ones = chosen[classes == 1].tolist()
    assert len(set(ones)) == 2


def test_only_retained_classes_are_partners():
    retain = Images(x=torch.zeros(3, 1, 4, 4), y=torch.tensor([1, 1, 2]), classes=tuple("abcd"))
    logits = torch.tensor([[5.0, 1, 2, 9]])
    assert likeliest_others(logits, torch.tensor([0]), retain).tolist() == [[2, 1]]
    with pytest.raises(UserError, match="another class"):
        likeliest_others(logits, torch.tensor([1]), retain.select([0, 1]))


def test_leaving_the_teacher_is_possible_and_following_it_is_free(original, split):
    x = to_float(split[1].x[:50])
    logits = original(x)
    assert float(distillation(logits, logits, 4.0)) == pytest.approx(0, abs=1e-6)
    kept = SCRUB(max_epochs=0, gamma=0, alpha=1, epochs=2, **PLAIN)(original, *split[:2], run=Run())
    left = SCRUB(max_epochs=2, epochs=2, optimizer=sgd(0.01), **PLAIN)(original, *split[:2], run=Run())
    x = to_float(split[0].x)
    assert float(distillation(original(x), kept(x), 4.0)) < 0.01 < float(distillation(original(x), left(x), 4.0))


def test_pruned_weights_stay_zero_and_no_others_are(convolutional, split):
    method = UnlearnSparse(
        pruner=GlobalMagnitude(sparsity=0.8, keep_last=True), epochs=1, batch_size=64, then=FT(**SHORT), **PLAIN
    )
    _, masks = method.sparse(convolutional, *split[:2], run=Run().child("unlearn-sparse"))
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int((~mask).sum()) for mask in masks.values()) == total - round(0.2 * total)
    unlearned = method(convolutional, *split[:2], run=Run())
    weights = dict(unlearned.named_parameters())
    for name, mask in masks.items():
        assert not weights[name][~mask].any()
        assert (weights[name][mask] != 0).all()
    assert not any("parametrizations" in name for name in unlearned.state_dict())


def test_a_sparse_retraining_is_refused(convolutional, split):
    with pytest.raises(UserError, match="cannot follow"):
        UnlearnSparse(then="retrain")(convolutional, *split[:2], run=Run())


# --- requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [GradientAscent(), SalUn(), SFRon(), SSD(), NaturalMU(), InfluenceUnlearning()], ids=lambda m: m.id
)
def test_an_empty_request_is_refused(method, original, split):
    nothing = split[0].select(slice(0, 0))
    with pytest.raises(UserError, match="forget set is empty"):
        method(original, nothing, split[1], run=Run())


def test_marked_images_keep_their_order_and_lose_other_columns(split):
    images = grouped(split[0].with_column("group", torch.zeros(len(split[0]))), split[1])
    assert list(images.columns) == ["forget"]
    count = len(split[0])
    assert images.columns["forget"][:count].all()
    assert not images.columns["forget"][count:].any()
    assert torch.equal(images.y, concat(split[0], split[1]).y)


def test_gradient_ascent_stops_at_its_ceiling(original, split):
    short = GradientAscent(epochs=30, optimizer=sgd(5e-3), batch_size=32, **PLAIN)
    model = short(original, *split[:2], run=Run())
    loss = F.cross_entropy(model(to_float(split[0].x)), split[0].y)
    far = GradientAscent(epochs=30, optimizer=sgd(5e-3), batch_size=32, ceiling=50, **PLAIN)(
        original, *split[:2], run=Run()
    )
    assert math.log(10) < float(loss) < float(F.cross_entropy(far(to_float(split[0].x)), split[0].y))


def test_an_interrupted_unlearning_goes_on_to_the_same_end(convolutional, split, tmp_path, monkeypatch):
    from holdfast.training.loop import Loop

    method = SalUn(epochs=3, batch_size=64, **PLAIN)
    whole = method(convolutional, *split[:2], run=Run(out=tmp_path / "whole"))
    end = Loop._end_epoch

    def stop(self, *args):
        end(self, *args)
        if self.state.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_end_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            method(convolutional, *split[:2], run=Run(out=tmp_path / "resumed"))
    assert same(method(convolutional, *split[:2], run=Run(out=tmp_path / "resumed")), whole)


def test_a_model_whose_weights_are_all_frozen_is_refused(original, split):
    frozen = copy.deepcopy(original).requires_grad_(False)
    with pytest.raises(UserError, match="frozen"):
        SSD()(frozen, *split[:2], run=Run())


def test_the_bad_teacher_starts_from_the_competent_one(digits, split):
    """Without anything to forget but one image, a step at rest is self-distillation."""
    model = build_model("mlp", num_classes=10, image_shape=digits.shape, run=Run())
    still = BadTeacher(epochs=1, batch_size=64, optimizer=sgd(1e-6, weight_decay=0.0), **PLAIN)
    moved = still(model, split[0].select([0]), split[1], run=Run())
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(model.parameters(), moved.parameters(), strict=True))
