import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.errors import UserError
from holdfast.hardening import PubDef
from holdfast.run import Run
from holdfast.training import CrossEntropy, Step

RNG = torch.Generator().manual_seed(0)
X = torch.rand(6, 1, 8, 8, generator=RNG)
Y = torch.arange(6) % 3
STACK = torch.randint(0, 256, (6, 4, 2, 1, 8, 8), dtype=torch.uint8, generator=RNG)


class Linear(nn.Module):
    """Notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 64, generator=torch.Generator().manual_seed(1)) / 4)
        self.shown = []

    def forward(self, x):
        self.shown.append(x)
        return x.flatten(1) @ self.weight.T


def step(stack=STACK, **more):
    return Step(run=Run(), columns={"transfer": stack}, **more)


def loss(objective, stack=STACK, **more):
    return objective(Linear(), X, Y, step(stack, **more))


def by_source(stack=STACK):
    """The mean loss of each sample over all sources, with one copy each: (sources, N)."""
    model = Linear()
    return torch.stack([F.cross_entropy(model(stack[:, s, 0] / 255), Y, reduction="none") for s in range(4)])


ONE = STACK[:, :, :1]
PLAIN = {"transforms": ()}


def test_without_sources_it_is_plain_cross_entropy_bit_for_bit():
    expected = CrossEntropy()(Linear(), X, Y, Step())
    for kind in ("random", "all", "top-k", "dynamic"):
        assert torch.equal(loss(PubDef(loss=kind), STACK[:, :0]), expected)


def test_all_is_the_weighted_mean_over_clean_and_attacked():
    clean = F.cross_entropy(Linear()(X), Y)
    expected = 0.3 * clean + 0.7 * by_source().mean()
    torch.testing.assert_close(loss(PubDef(loss="all", clean=0.3, **PLAIN), ONE), expected)
    torch.testing.assert_close(loss(PubDef(loss="all", clean=1.0, **PLAIN), ONE), clean)


def test_top_k_of_all_sources_is_all_and_of_one_the_worst_of_each_image():
    everything = loss(PubDef(loss="all", **PLAIN), ONE)
    torch.testing.assert_close(loss(PubDef(loss="top-k", k=4, **PLAIN), ONE), everything)
    worst = loss(PubDef(loss="top-k", k=1, clean=0, **PLAIN), ONE)
    torch.testing.assert_close(worst, by_source().amax(0).mean())
    with pytest.raises(UserError, match="k must be at most the number of sources, 4, got 5"):
        loss(PubDef(loss="top-k", k=5, **PLAIN), ONE)


def test_random_shows_one_copy_of_one_source_of_the_same_image():
    seen = set()
    for index in range(40):
        model = Linear()
        PubDef(**PLAIN)(model, X, Y, step(index=index))
        (shown,) = model.shown
        assert torch.equal(shown[:6], X)
        for i, image in enumerate(shown[6:]):
            match = (STACK[i] == (image * 255).round().byte()).flatten(2).all(2).nonzero()
            assert len(match) == 1
            seen.add((i, *match[0].tolist()))
    assert len(seen) > 40  # of 48


def test_every_source_is_shifted_on_its_own_and_reproducibly():
    same = ONE[:, :1].expand(-1, 4, -1, -1, -1, -1).contiguous()
    model = Linear()
    objective = PubDef(loss="all", transforms=("crop(padding=2)",))
    first, again = objective(model, X, Y, step(same)), objective(model, X, Y, step(same))
    assert torch.equal(first, again)
    shown = model.shown[0].view(5, 6, 1, 8, 8)
    assert torch.equal(shown[0], X)
    assert len({tuple(s.flatten().tolist()) for s in shown[1:]}) == 4


def test_dynamic_weighs_sources_by_their_recent_losses():
    memory = {}
    objective = PubDef(loss="dynamic", update=0.25, clean=0.5, **PLAIN)
    clean, sources = F.cross_entropy(Linear()(X), Y), by_source().mean(1).detach()
    average = torch.full((4,), 1 / 5)
    for _ in range(3):
        average = 0.75 * average + 0.25 * sources
        expected = 0.5 * clean + 0.5 * (average / average.sum() * sources).sum()
        torch.testing.assert_close(loss(objective, ONE, memory=memory), expected)
    assert not memory["pubdef"].requires_grad


def test_only_the_clean_pass_counts_as_training_accuracy():
    at = step()
    PubDef(**PLAIN)(Linear(), X, Y, at)
    torch.testing.assert_close(at.logits, Linear()(X).detach())


def test_a_column_that_does_not_fit_is_refused():
    for bad in (STACK[..., :7], STACK.float(), STACK[:, 0]):
        with pytest.raises(UserError, match="pubdef: the column 'transfer'"):
            loss(PubDef(), bad)
    with pytest.raises(UserError, match="batch-transform"):
        PubDef(transforms=("pgd",))
