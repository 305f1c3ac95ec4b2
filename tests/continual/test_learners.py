"""What each learner does to the model, against loops written out by hand."""

import copy

import pytest
import torch
from torch.nn import functional as F

from holdfast import catalog
from holdfast.continual import ER, UGCLU, ContinualLearner, DERPlusPlus, Memory, Request, serve
from holdfast.continual.ug_clu import adaptive_descent
from holdfast.data import concat, to_float
from holdfast.errors import UserError
from holdfast.models import build_model, predict
from holdfast.run import Run
from holdfast.training import SGD, Constant, CrossEntropy, fit
from holdfast.unlearning import SFRon
from holdfast.unlearning.gradients import importance
from holdfast.unlearning.sfron import balanced_mask

PLAIN = {"crop": None, "flip": None}
STEEP = SGD(lr=0.05, momentum=0.9, nesterov=False, weight_decay=1e-3)
NAMED = {"epochs": 3, "batch_size": 64, "optimizer": STEEP, "schedule": Constant(), **PLAIN}


def close(model, other):
    return all(torch.allclose(p, q, atol=1e-5) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def equal(model, other):
    return all(torch.equal(p, q) for p, q in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def by_hand(model, steps):
    """Plain SGD with momentum and decay, a step for each loss that `steps` makes of the model."""
    model = copy.deepcopy(model).train()
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for loss in steps:
        model.zero_grad()
        loss(model).backward()
        with torch.no_grad():
            for p, v in zip(model.parameters(), velocity, strict=True):
                v.mul_(0.9).add_(p.grad + 1e-3 * p)
                p.sub_(0.05 * v)
    return model


def cross_entropy_of(images):
    return lambda model: F.cross_entropy(model(to_float(images.x)), images.y)


# Groups of at most one batch come whole in every step, whatever their order; so no loop needs the library's own.


@pytest.mark.parametrize("repairs", [1, 2])
def test_without_forgetting_temper_and_mask_ug_clu_is_a_plain_loop_of_replay(model, task, filled, repairs):
    request = task(2, 3)
    plain = UGCLU(**NAMED, temper=0, saliency=0, slow=1.0, clip=1e9, repairs=repairs)
    learnt = plain(model, request, filled, run=Run())
    new, old = cross_entropy_of(request.learn), cross_entropy_of(filled.images)
    assert close(learnt, by_hand(model, [new, *[old] * repairs] * 3))
    assert not close(learnt, by_hand(model, [new] * 3))


def test_with_a_mask_and_a_slow_step_ug_clu_is_the_loop_of_its_description(model, task, filled):
    request = task(2, 3)
    method = UGCLU(**NAMED, temper=0.5, saliency=1.0, clip=0.3, slow=0.4, repairs=2, alpha=0.3)
    learnt = method(model, request, filled, run=Run())
    masks = balanced_mask(
        *(importance(model, part, run=Run(), batch_size=20) for part in (request.learn, filled.images)), 1.0
    )
    hand = copy.deepcopy(model).train()
    parameters = dict(hand.named_parameters())
    velocity = {name: torch.zeros_like(p) for name, p in parameters.items()}
    x, y, old, stored = (*(to_float(request.learn.x), request.learn.y), filled.images, filled.logits)
    for _ in range(3):
        before = {name: p.detach().clone() for name, p in parameters.items()}
        for fast in (True, False, False):
            hand.zero_grad()
            if fast:
                losses = F.cross_entropy(hand(x), y, reduction="none")
                weights = losses.detach().sqrt()
                (weights / weights.sum() * losses).sum().backward()
                for name, p in parameters.items():
                    p.grad *= masks[name]
                torch.nn.utils.clip_grad_norm_(hand.parameters(), 0.3)
            else:
                logits = hand(to_float(old.x))
                (F.cross_entropy(logits, old.y) + 0.3 * ((logits - stored) ** 2).mean()).backward()
            with torch.no_grad():
                for name, p in parameters.items():
                    velocity[name] = 0.9 * velocity[name] + p.grad + 1e-3 * p
                    p.sub_(0.05 * velocity[name])
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(before[name] + 0.4 * (p - before[name]))
    assert close(learnt, hand)
    assert any(not mask.all() and mask.any() for mask in masks.values())


def test_without_learning_ug_clu_is_sfron_with_the_memory_retained(convolutional, train, filled):
    request = Request(forget=train.select((train.y == 1).nonzero().flatten()[:20]))
    named = {**NAMED, "ascent": 2.0, "slow": 0.5}
    a = UGCLU(**named, repairs=1)(convolutional, request, filled, run=Run())
    b = SFRon(**named, every=1)(convolutional, request.forget, filled.images, run=Run())
    assert close(a, b)
    assert not close(a, convolutional)


def test_what_is_learnt_and_what_is_forgotten_pass_separately(convolutional, train, task, filled):
    """Batch norm sees one or the other, never both in one batch."""
    request = Request(learn=task(2).learn, forget=train.select((train.y == 1).nonzero().flatten()[:10]))
    groups = [set(map(tuple, part.x.flatten(1).tolist())) for part in (request.learn, request.forget, filled.images)]
    seen = []
    convolutional.register_forward_pre_hook(lambda module, given: seen.append(given[0].flatten(1).tolist()))
    UGCLU(**NAMED, saliency=0, repairs=1)(convolutional, request, filled, run=Run())
    batches = [{place for place, group in enumerate(groups) for row in batch if tuple(row) in group} for batch in seen]
    assert all(len(found) == 1 for found in batches)
    # A look at the shape of the logits; then, in each of three epochs, a fast step of two passes, and a repair.
    assert [*map(min, batches)] == [0, *[0, 1, 2] * 3]


def test_learning_and_forgetting_at_once_does_both(digits, train, task):
    run = Run(seed=1)
    model = build_model("convnet(width=8)", num_classes=10, image_shape=digits.shape, run=run)
    learner = UGCLU(epochs=4, batch_size=16, ascent=2.0, **PLAIN)
    model, memory = serve(
        learner, model, Request(learn=train.select(train.y < 3)), Memory.empty(60, train), run=run.child("1")
    )
    forget, new = train.select(train.y == 1), train.select(train.y == 5)
    before = float((predict(model, forget, run=run).argmax(1) == 1).float().mean())
    both, memory = serve(learner, model, Request(learn=new, forget=forget), memory, run=run.child("2"))
    after = float((predict(both, forget, run=run).argmax(1) == 1).float().mean())
    kept = train.select((train.y == 0) | (train.y == 2))
    assert before > 0.95
    assert after < 0.2
    assert float((predict(both, new, run=run).argmax(1) == 5).float().mean()) > 0.8
    assert float((predict(both, kept, run=run).argmax(1) == kept.y).float().mean()) > 0.8
    assert not (memory.images.y == 1).any()


def test_the_samples_weights_sum_to_one_and_rise_with_the_loss():
    rng = torch.Generator().manual_seed(0)
    logits, y = 3 * torch.randn(8, 5, generator=rng), torch.arange(8) % 5
    logits.requires_grad_()
    losses = F.cross_entropy(logits, y, reduction="none")
    assert torch.allclose(adaptive_descent(logits, y, 0.0), losses.mean())
    for temper in (0.5, 1.0):
        weights = losses.detach() ** temper / (losses.detach() ** temper).sum()
        (wanted,) = torch.autograd.grad((weights * losses).sum(), logits, retain_graph=True)
        (found,) = torch.autograd.grad(adaptive_descent(logits, y, temper), logits, retain_graph=True)
        assert torch.allclose(found, wanted, atol=1e-6)
        assert adaptive_descent(logits, y, temper) > losses.mean()
    perfect = torch.zeros(3, 2)
    perfect[:, 0] = 200.0
    assert torch.isfinite(adaptive_descent(perfect, torch.zeros(3, dtype=torch.int64), 0.5))


@pytest.mark.parametrize("learner", [ER(**NAMED), DERPlusPlus(**NAMED), DERPlusPlus(**NAMED, alpha=0, beta=0)], ids=str)
def test_without_a_memory_replay_is_sequential_fine_tuning(convolutional, train, task, learner):
    run, memory = Run(), Memory.empty(0, train)
    found, other = convolutional, copy.deepcopy(convolutional)
    for k, classes in enumerate([(0, 1), (2, 3)]):
        request = task(*classes, count=90)
        found, memory = serve(learner, found, request, memory, run=run.child(str(k)))
        named = {**NAMED, "transforms": []}
        del named["crop"], named["flip"]
        other = fit(other, request.learn, run=run.child(str(k)).child("learn"), **named).model
    assert len(memory) == 0
    assert equal(found, other)


def test_with_both_weights_zero_dark_replay_is_fine_tuning(convolutional, task, filled):
    request, run = task(2, 3, count=90), Run()
    a = DERPlusPlus(**NAMED, alpha=0, beta=0)(convolutional, request, filled, run=run)
    named = {k: v for k, v in NAMED.items() if k not in PLAIN}
    b = fit(
        copy.deepcopy(convolutional), request.learn, objective=CrossEntropy(), run=run.child("learn"), **named
    ).model
    assert equal(a, b)


def test_experience_replay_is_the_mean_over_both_batches(model, task, train):
    memory = task(0, 1, count=64).learn  # as large as a batch, so that each comes once in every step
    memory = Memory.empty(64, train).insert(memory, lambda images: torch.zeros(64, 10), rng=torch.Generator())
    request = task(2, 3, count=64)
    found = ER(**NAMED)(model, request, memory, run=Run())
    both = concat(request.learn.but(columns={}), memory.images.but(columns={}))
    assert close(found, by_hand(model, [cross_entropy_of(both)] * 3))


def test_dark_replay_is_the_sum_of_its_three_losses(model, task, train):
    rng = torch.Generator().manual_seed(0)
    stored = torch.randn(64, 10, generator=rng)
    memory = Memory.empty(64, train).insert(task(0, 1, count=64).learn, lambda images: stored, rng=rng)
    request = task(2, 3, count=64)
    found = DERPlusPlus(**NAMED, alpha=0.3, beta=0.6)(model, request, memory, run=Run())

    def loss(network):
        logits = network(to_float(memory.images.x))
        dark = ((logits - memory.logits) ** 2).mean()
        new = cross_entropy_of(request.learn)(network)
        return new + 0.3 * dark + 0.6 * F.cross_entropy(logits, memory.images.y)

    assert close(found, by_hand(model, [loss] * 3))


@pytest.mark.parametrize("spec", ["er", "der-plus-plus", "ug-clu"])
def test_forgotten_ids_leave_the_memory_first_and_nothing_forgotten_is_stored(convolutional, train, spec):
    small = "gradient-ascent(epochs=1, crop=none, flip=none)"
    more = "" if spec == "ug-clu" else f", unlearner={small}"
    learner = catalog.build(f"{spec}(epochs=1, crop=none, flip=none{more})", kind=ContinualLearner)
    run = Run()
    model, memory = serve(
        learner, convolutional, Request(learn=train.select(slice(0, 200))), Memory.empty(40, train), run=run
    )
    gone = train.select(memory.ids[:15])
    calls = []

    class Watched(type(learner)):
        def __call__(self, model, request, memory, *, run):
            calls.append(set(memory.ids.tolist()))
            return learner(model, request, memory, run=run)

    new = train.select(slice(200, 400))
    _, after = serve(Watched(), model, Request(learn=new, forget=gone), memory, run=run.child("2"))
    assert calls == [set(memory.ids.tolist()) - set(gone.columns["id"].tolist())]
    assert not set(after.ids.tolist()) & set(gone.columns["id"].tolist())
    assert len(after) == 40
    assert (after.ids >= 200).sum() >= 15


def test_stored_logits_never_change(convolutional, train, task):
    learner, run = DERPlusPlus(epochs=1, **PLAIN), Run()
    model, first = serve(learner, convolutional, task(0, 1), Memory.empty(30, train), run=run.child("1"))
    assert torch.allclose(first.logits, predict(model, first.images, run=run))
    model, second = serve(learner, model, task(2, 3), first, run=run.child("2"))
    both = torch.isin(second.ids, first.ids)
    assert 0 < both.sum() < len(second)
    rows = dict(zip(first.ids.tolist(), first.logits, strict=True))
    kept = zip(second.ids[both].tolist(), second.logits[both], strict=True)
    assert all(torch.equal(rows[id], row) for id, row in kept)


@pytest.mark.parametrize("spec", ["er", "der-plus-plus", "ug-clu"])
def test_with_everything_else_forgotten_there_is_nothing_to_go_by(convolutional, train, task, spec):
    learner = catalog.build(f"{spec}(epochs=1, crop=none, flip=none)", kind=ContinualLearner)
    request = task(0, 1)
    model, memory = serve(learner, convolutional, request, Memory.empty(10, train), run=Run())
    with pytest.raises(UserError, match="holds no image beside those to be forgotten"):
        serve(learner, model, Request(forget=request.learn), memory, run=Run())


def test_a_memory_helps(digits, train):
    """Two tasks of two digits: without a memory the first is lost."""
    run = Run()
    start = build_model("convnet(width=8)", num_classes=10, image_shape=digits.shape, run=run)
    old = digits.test.select(digits.test.y < 2)
    found = {}
    for spec in ("er", "der-plus-plus", "ug-clu"):
        for room in (0, 30):
            learner = catalog.build(f"{spec}(epochs=3, batch_size=16, crop=none, flip=none)", kind=ContinualLearner)
            model, memory = start, Memory.empty(room, train)
            for k in range(2):
                request = Request(learn=train.select(train.y // 2 == k))
                model, memory = serve(learner, model, request, memory, run=run.child(str(k)))
            found[spec, room] = float((predict(model, old, run=run).argmax(1) == old.y).float().mean())
        assert found[spec, 30] > found[spec, 0] + 0.3, found
