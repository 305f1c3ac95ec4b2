"""Orders: who comes when, over epochs, groups and processes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.methods import Callback, Objective
from holdfast.run import Run
from holdfast.training import SGD, Alternating, Constant, CrossEntropy, Interleaved, InTurn, Shuffled, fit
from holdfast.training.batches import Plan

ORDERS = st.one_of(
    st.integers(1, 40).map(Shuffled),
    st.tuples(st.integers(1, 20), st.integers(2, 40)).map(InTurn),
    st.builds(
        InTurn,
        st.tuples(st.integers(1, 20), st.integers(2, 40)),
        sizes=st.tuples(st.integers(1, 9), st.none()),
        rounds=st.tuples(st.integers(0, 2), st.none()),
    ),
    st.builds(Alternating, st.tuples(st.integers(1, 20), st.integers(2, 40)), every=st.integers(1, 6)),
    st.builds(Interleaved, st.tuples(st.integers(2, 40), st.integers(1, 20)), after=st.integers(1, 4)),
)


@given(order=ORDERS, epoch=st.integers(0, 3), size=st.integers(2, 16), least=st.integers(1, 3))
def test_as_many_steps_are_announced_as_come(order, epoch, size, least):
    steps = order.batches(epoch, size, least, Run())
    assert len(steps) == order.steps(epoch, size, least)
    assert all(1 <= len(step) <= size for step in steps)


@given(order=ORDERS, epoch=st.integers(0, 3))
def test_an_order_depends_on_seed_and_epoch_alone(order, epoch):
    a, b = (order.batches(epoch, 5, 1, Run(seed=3)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_groups_come_in_turn_and_none_is_mixed():
    steps = InTurn((7, 20), sizes=(3, None)).batches(0, 8, 1, Run())
    assert [len(step) for step in steps] == [3, 3, 8, 8, 4]  # the seventh image alone would be no batch
    assert all((step < 7).all() for step in steps[:2])
    assert sorted(torch.cat(steps[2:]).tolist()) == list(range(7, 27))


def test_a_group_that_has_had_its_rounds_comes_no_more():
    order = InTurn((4, 8), rounds=(2, None))
    assert [order.steps(epoch, 4, 1) for epoch in range(4)] == [3, 3, 2, 2]
    plan = Plan(count=12, batch_size=4, given=order)
    assert [plan.begin(epoch) for epoch in range(5)] == [0, 3, 6, 8, 10]


def test_the_first_group_visits_before_every_so_many_batches_and_its_order_runs_on():
    order, run = Alternating((10, 24), every=2), Run()
    epochs = [order.batches(epoch, 4, 1, run) for epoch in range(5)]
    first = [[bool((step < 10).all()) for step in steps] for steps in epochs]
    assert first == [[True, False, False] * 3] * 5
    visits = torch.cat([step for steps in epochs for step in steps if (step < 10).all()])
    for begin in range(0, len(visits) - 9, 10):  # each ten of them are all ten images
        assert sorted(visits[begin : begin + 10].tolist()) == list(range(10))
    for steps in epochs:
        assert sorted(i for step in steps for i in step.tolist() if i >= 10) == list(range(10, 34))


def test_the_second_group_follows_each_batch_and_its_order_runs_on():
    order, run = Interleaved((24, 10), after=2), Run()
    epochs = [order.batches(epoch, 4, 1, run) for epoch in range(5)]
    second = [[bool((step >= 24).all()) for step in steps] for steps in epochs]
    assert second == [[False, True, True] * 6] * 5
    follow = torch.cat([step for steps in epochs for step in steps if (step >= 24).all()])
    for begin in range(0, len(follow) - 9, 10):  # each ten of them are all ten images
        assert sorted(follow[begin : begin + 10].tolist()) == list(range(24, 34))
    for steps in epochs:
        assert sorted(i for step in steps for i in step.tolist() if i < 24) == list(range(24))


def test_a_second_group_smaller_than_a_batch_comes_whole():
    steps = Interleaved((8, 3)).batches(1, 4, 1, Run())
    assert [len(step) for step in steps] == [4, 3, 4, 3]
    assert all(sorted(step.tolist()) == [8, 9, 10] for step in steps[1::2])


class Listener(Objective):
    """Notes whose batch it was."""

    columns = ("group",)

    def __init__(self):
        self.seen = []

    def __call__(self, model, x, y, step):
        self.seen.append((step.epoch, sorted(set(step.columns["group"].tolist()))))
        return CrossEntropy()(model, x, y, step)

    def __str__(self):
        return "listener"


def test_a_training_follows_the_order_given(noise, convolutional):
    images = noise.with_column("group", torch.arange(48) >= 10)
    listener = Listener()
    order = InTurn((10, 38), rounds=(1, None))
    fit(convolutional(), images, epochs=2, batch_size=20, objective=listener, order=order, run=Run())
    assert listener.seen == [(0, [False]), (0, [True]), (0, [True]), (1, [True]), (1, [True])]


def test_epochs_of_unequal_length_resume_exactly(noise, convolutional, tmp_path):
    class StopAfter(Callback):
        def __init__(self, step):
            self.step = step

        def __str__(self):
            return "stop"

        def on_step(self, state):
            if state.index == self.step:
                raise KeyboardInterrupt

    named = {"epochs": 3, "batch_size": 10, "order": InTurn((10, 38), rounds=(1, None)), "save_minutes": 0.0}
    whole = fit(convolutional(), noise, callbacks=[StopAfter(-1)], run=Run(), **named).model
    run = Run(out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(convolutional(), noise, callbacks=[StopAfter(7)], run=run, **named)
    resumed = fit(convolutional(), noise, callbacks=[StopAfter(-1)], run=run, **named).model
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_in_evaluation_mode_statistics_stay_and_weights_move(noise, convolutional):
    model = convolutional()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, noise, epochs=1, batch_size=20, mode="eval", run=Run())
    after = model.state_dict()
    statistics = [name for name in before if "running" in name or "tracked" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    weights = [name for name, _ in model.named_parameters()]
    assert not any(torch.equal(before[name], after[name]) for name in weights)


def test_a_gradient_may_be_changed_before_the_step(noise, convolutional):
    class Nothing(Callback):
        def on_gradient(self, state):
            for parameter in state.model.parameters():
                parameter.grad.zero_()

        def __str__(self):
            return "nothing"

    model = convolutional()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = SGD(lr=0.1, weight_decay=0.0)
    fit(model, noise, epochs=1, optimizer=optimizer, schedule=Constant(), callbacks=[Nothing()], run=Run())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_gradient_is_clipped_to_its_norm(noise, convolutional):
    norms = []

    class Look(Callback):
        def on_gradient(self, state):
            norms.append(float(torch.stack([p.grad.norm() for p in state.model.parameters()]).norm()))

        def __str__(self):
            return "look"

    fit(convolutional(), noise, epochs=1, callbacks=[Look(), "clip-gradient(norm=0.01)", Look()], run=Run())
    assert norms[0] > 0.01
    assert norms[1] == pytest.approx(0.01, rel=1e-3)
