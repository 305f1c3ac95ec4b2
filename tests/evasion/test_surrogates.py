import pytest
import torch

from holdfast.evasion.losses import loss_for
from holdfast.evasion.surrogates import Answers, Surrogate
from holdfast.run import Run


def points(n, seed):
    x = torch.rand(n, 2, 5, 4, generator=torch.Generator().manual_seed(seed))
    return (x * 255).round() / 255


def filled(rounds, memory=50, n=6):
    x = points(n, 0)
    answers, history = Answers(x, 3, memory), []
    for k in range(rounds):
        rows = torch.arange(n) if k == 0 else torch.tensor([0, 2, 3, 5])
        at = x if k == 0 else points(len(rows), k)
        near = -1 - at.mean((1, 2, 3))
        scores = torch.stack([at.mean((1, 2, 3)), at[:, 0].mean((1, 2)), at[:, 1].mean((1, 2))], 1)
        answers.add(rows, at, scores, near)
        history += [(int(r), at[i], float(near[i])) for i, r in enumerate(rows)]
    return answers, history


def test_the_steepest_slope_is_that_between_any_two_points_of_an_image():
    answers, history = filled(7)
    for row in range(6):
        own = [(p, v) for r, p, v in history if r == row]
        slopes = [abs(v - w) / float((p - q).norm()) for i, (p, v) in enumerate(own) for q, w in own[:i]]
        assert float(answers.steepest[row]) == pytest.approx(max(slopes, default=0), rel=1e-4)
        assert float(answers.nearest[row]) == pytest.approx(max(v for _, v in own))


def test_promising_is_what_no_answer_rules_out():
    answers, history = filled(5)
    rows = torch.tensor([0, 2, 3, 5, 0, 2])
    near = torch.stack([[p for r, p, _ in history if r == row][-1] for row in rows.tolist()])
    tried = near + (points(6, 99) - near) * torch.tensor([0.02, 0.1, 0.3, 0.5, 0.8, 1.0]).view(-1, 1, 1, 1)
    tried = (tried * 255).round() / 255
    verdicts = set()
    for ambition in (0.5, 0.7, 0.9, 0.99, 1.01):
        expected = [
            all(
                v + float(answers.steepest[row]) * float((p - at).norm()) >= ambition * float(answers.nearest[row])
                for r, p, v in history
                if r == row
            )
            for row, at in zip(rows.tolist(), tried, strict=True)
        ]
        assert answers.promising(rows, tried, ambition).tolist() == expected
        verdicts |= set(expected)
    assert verdicts == {True, False}


def test_the_memory_keeps_the_first_and_the_latest():
    answers, history = filled(9, memory=4)
    own = [p for r, p, _ in history if r == 0]
    kept = {tuple(row.flatten().tolist()) for row in answers.bytes[0]}
    wanted = {tuple((p * 255).round().byte().flatten().tolist()) for p in (own[0], *own[-3:])}
    assert kept == wanted
    x, scores = answers.batch(200, torch.Generator().manual_seed(0))
    assert torch.allclose(x.mean((1, 2, 3)), scores[:, 0], atol=1e-5), "scores belong to their points"


def test_a_surrogate_learns_the_answers_and_their_gradient():
    """The answers are linear in the channels' means, so their gradient is known."""
    generator = torch.Generator().manual_seed(0)
    n = 64
    x = torch.rand(n, 2, 6, 6, generator=generator) * 0.5 + 0.5 * torch.rand(n, 2, 1, 1, generator=generator)
    scores = torch.stack([10 * x[:, 0].mean((1, 2)), 10 * x[:, 1].mean((1, 2)), torch.full((n,), 5.0)], 1)
    answers = Answers(x, 3, 2)
    answers.add(torch.arange(n), x, scores, torch.zeros(n))
    surrogate = Surrogate("convnet(width=16)", answers, Run())
    centred = scores - scores.mean(1, keepdim=True)

    def error():
        return float((surrogate.scores(x) - centred).square().mean() / centred.var())

    before = error()
    surrogate.fit(120, 32, 0.0)
    assert error() < 0.1 < before
    y = torch.zeros(n, dtype=torch.int64)
    gradient = surrogate.gradient(x, loss_for("any", "ce"), y, y)
    assert gradient[:, 0].mean() < 0 < gradient[:, 1].mean()
    surrogate.fit(1000, 32, 10.0)  # good enough already: ends at once
    assert not surrogate.model.training
