import dataclasses

import pytest
import torch
from torch import nn

from holdfast import stats
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.evasion import AAA, PGD, BidirectionalSquare, Square
from holdfast.evasion.aaa import fit_temperature
from holdfast.evasion.adaptive import informed
from holdfast.evasion.oracle import consult
from holdfast.run import Run


def logits(n=200, classes=10, seed=0):
    return 4 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def margin(z):
    best = z.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def small_net(n=32):
    """A linear model whose margins spread over several cells."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        model = nn.Sequential(nn.Flatten(), nn.Linear(108, 6)).eval()
    model[1].weight.data.mul_(25)
    x = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def test_the_linear_attractors_mirror_the_margin_within_its_cell():
    shown = AAA(tau=6).target(torch.tensor([0.0, 1, 3, 5, 6, 7, 9, 11]))
    assert shown.tolist() == [6, 5, 3, 1, 12, 11, 9, 7]
    assert AAA(tau=6, alpha=0.5).target(torch.tensor([1.0, 5.0])).tolist() == [4, 2]


def test_the_sine_has_no_jumps_and_never_asks_for_another_label():
    m = torch.linspace(0, 24, 24_001)
    shown = AAA(shape="sine").target(m)
    assert (shown[1:] - shown[:-1]).abs().max() < 0.01
    assert shown[m > 0.5].min() > 0.19
    assert torch.allclose(AAA(shape="sine").target(torch.tensor([3.0, 9.0, 6.0])), torch.tensor([3.0, 9.0, 6.0]))
    inside = (m % 6 > 1.8) & (m % 6 < 4.2)
    assert (shown[1:] - shown[:-1])[inside[1:]].max() < 0  # falls where the margin rises


def test_no_iterations_return_the_logits_bit_for_bit():
    z = logits()
    assert torch.equal(AAA(iterations=0).answer(z), z)


def plainly(guard, z):
    """The algorithm as the paper writes it, by autograd and PyTorch's own Adam, one sample at a time."""
    shown = []
    for row in z:
        top, order = int(row.argmax()), row.topk(2).values
        goal = guard.target((order[0] - order[1])[None])[0]
        confidence = (row / guard.temperature).softmax(0).max()
        u = row.clone().requires_grad_()
        optimizer = torch.optim.Adam([u], lr=guard.lr)
        for _ in range(guard.iterations):
            best = u.topk(2).values
            loss = (best[0] - best[1] - goal).abs() + guard.beta * (u.softmax(0)[top] - confidence).abs()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        shown.append(u.detach() if int(u.argmax()) == top else row)
    return torch.stack(shown)


@pytest.mark.parametrize(
    "guard", [AAA(iterations=30), AAA(shape="sine", temperature=2, beta=2, iterations=30)], ids=str
)
def test_the_written_out_derivative_is_that_of_autograd(guard):
    z = logits(6).double()
    assert torch.allclose(guard.answer(z), plainly(guard, z), atol=1e-9)


def test_labels_never_change_and_the_confidence_stays_near():
    z = logits(2000)
    z[:50] = z[:50, :1]  # all equal: the first class is predicted
    guard = AAA()
    u = guard.answer(z)
    assert torch.equal(u.argmax(1), z.argmax(1))
    moved = (u.softmax(1).amax(1) - z.softmax(1).amax(1)).abs()
    assert moved[50:].mean() < 0.1
    far = margin(z) > 3  # below, margin and confidence contradict each other
    assert (margin(u) - guard.target(margin(z)))[far].abs().mean() < 0.3


def test_a_row_does_not_depend_on_the_others_and_classes_have_no_order():
    z = logits(64)
    u = AAA().answer(z)
    assert torch.equal(AAA().answer(z[5:6]), u[5:6])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(AAA().answer(z[:, order]), u[:, order], atol=1e-4)


def test_the_guarded_model_keeps_labels_has_no_gradient_and_leaves_the_model_alone():
    model, x, y = small_net()
    guarded = AAA()(model)
    assert torch.equal(guarded(x).argmax(1), y)
    assert not torch.allclose(guarded(x), model(x), atol=0.1)
    assert not guarded(x.clone().requires_grad_()).requires_grad
    guarded.model[1].weight.data.zero_()
    assert not torch.equal(guarded(x).argmax(1), model(x).argmax(1))


def test_scores_alone_find_less_than_without_the_guard_and_knowing_it_finds_everything_again():
    model, x, y = small_net()
    run, guarded = Run(), AAA(iterations=40)(model)
    square = Square(eps=0.1, queries=60)
    plain, against = square.run(model, x, y, run=run), square.run(guarded, x, y, run=run)
    assert against.success.sum() < plain.success.sum()
    blind = PGD(eps=0.1, steps=5, random_start=False)
    assert not blind.run(guarded, x, y, run=run).success.any()
    unguarded, knowing = blind.run(model, x, y, run=run), blind.run(informed(guarded), x, y, run=run)
    assert torch.equal(knowing.success, unguarded.success)
    assert unguarded.success.sum() > len(x) / 2
    assert torch.equal(knowing.x_adv, unguarded.x_adv)
    assert torch.equal(knowing.logits, guarded(knowing.x_adv))  # the verdict is the guarded model's


class OneNumber(nn.Module):
    """Two classes and a margin that is four times the mean pixel."""

    def forward(self, x):
        m = 4 * x.flatten(1).mean(1)
        return torch.stack([m, torch.zeros_like(m)], 1)


def test_searching_up_climbs_what_square_descends():
    x = torch.full((6, 1, 6, 6), 0.5)
    y = torch.zeros(6, dtype=torch.int64)
    down = Square(eps=0.2, queries=40, p_init=0.3).run(OneNumber(), x, y, run=Run())
    up = BidirectionalSquare(eps=0.2, queries=40, p_init=0.3, direction="up")
    search = up.search("any", 1)
    assert (down.logits[:, 0] < 4 * 0.36).all()  # near the lowest there is, 0.3
    with consult(OneNumber(), x, Run()) as oracle:
        state = {
            "x0": x.clone(), "y": y, "target": y, "key": torch.arange(6), "step": torch.zeros(6, dtype=torch.int64),
            "best": x.clone(), "best_loss": torch.full((6,), -float("inf")), "fooled": torch.zeros(6, dtype=torch.bool),
        }  # fmt: skip
        search.begin(state)
        for _ in range(40):
            search.step(oracle, state)
            state["step"] += 1
    assert (4 * state["at"].flatten(1).mean(1) > 4 * 0.62).all()
    assert (state["best_loss"] >= -4 * 0.55).all()  # the point to return is the lowest one seen, not where it stands


class Cliff(nn.Module):
    """The margin jumps from 2 up to 8 where the mean pixel falls below 0.48, and then falls with rising brightness."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        m = torch.where(mean < 0.48, 8.0, 1 + mean)
        return torch.stack([m, torch.zeros_like(m)], 1)


def test_a_jump_turns_the_search_in_both_directions_around_for_good():
    x = torch.full((4, 1, 6, 6), 0.5)
    y = torch.zeros(4, dtype=torch.int64)
    search = BidirectionalSquare(eps=0.2, queries=40, p_init=0.3).search("any", 1)
    with consult(Cliff(), x, Run()) as oracle:
        state = {
            "x0": x.clone(), "y": y, "target": y, "key": torch.arange(4), "step": torch.zeros(4, dtype=torch.int64),
            "best": x.clone(), "best_loss": torch.full((4,), -float("inf")), "fooled": torch.zeros(4, dtype=torch.bool),
        }  # fmt: skip
        search.begin(state)
        assert not state["up"].any()
        turned = []
        for _ in range(40):
            search.step(oracle, state)
            state["step"] += 1
            turned.append(state["up"].clone())
    assert turned[-1].any()
    assert (torch.stack(turned).long().diff(dim=0) >= 0).all()


def test_the_temperature_found_calibrates_the_answers():
    model, _, _ = small_net()
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(400, 3, 6, 6, generator=generator)
    with torch.no_grad():
        y = torch.distributions.Categorical(logits=model(x) / 3).sample()  # the model is three times too sure
    images = Images(x=x, y=y, classes=tuple("abcdef"), name="held out")
    guard = AAA(iterations=40)
    fitted = fit_temperature(guard, model, images, run=Run(), step=0.05, finalists=6)
    assert fitted.temperature > 1.8
    assert fitted == dataclasses.replace(guard, temperature=fitted.temperature)
    errors = []
    for g in (guard, fitted):
        with torch.no_grad():
            answer = g(model)(x).softmax(1)
        errors.append(stats.ece(answer.amax(1).numpy(), (answer.argmax(1) == y).numpy(), equal_mass=False))
    assert errors[1] < errors[0] - 0.02
    with pytest.raises(UserError, match=r"step must be in \(0, 1\]"):
        fit_temperature(AAA(), model, images, run=Run(), step=0)
