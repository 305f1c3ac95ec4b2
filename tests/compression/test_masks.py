import copy

import pytest
import torch
from torch import nn

from holdfast.compression import HoldMasks, apply_masks, keep_largest, prunable, sparsity
from holdfast.errors import UserError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.embedding = nn.Embedding(4, 4)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.hidden(self.bn(self.conv(x)).relu().mean((2, 3))).relu())


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return Net()


def test_only_convolutions_and_linear_layers_are_prunable(net):
    assert list(prunable(net)) == ["conv.weight", "hidden.weight", "head.weight"]
    assert list(prunable(net, keep_first=True)) == ["hidden.weight", "head.weight"]
    assert list(prunable(net, keep_last=True)) == ["conv.weight", "hidden.weight"]
    assert list(prunable(net, keep_first=True, keep_last=True)) == ["hidden.weight"]


def test_a_shared_weight_counts_once(net):
    net.hidden.weight = net.conv.weight = nn.Parameter(torch.randn(8, 8))
    assert list(prunable(net)) == ["conv.weight", "head.weight"]


def test_nothing_to_prune_is_said():
    with pytest.raises(UserError, match="none is left to prune"):
        prunable(nn.BatchNorm2d(3))
    with pytest.raises(UserError, match="none is left to prune"):
        prunable(nn.Linear(2, 2), keep_first=True, keep_last=True)


@pytest.mark.parametrize("sparse", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_the_count_is_exact_even_among_ties(sparse):
    scores = {"a": torch.ones(10, 7), "b": torch.ones(33)}
    masks = keep_largest(scores, sparse)
    assert sum(int(m.sum()) for m in masks.values()) == round((1 - sparse) * 103)
    assert sparsity(masks) == pytest.approx(1 - round((1 - sparse) * 103) / 103)
    assert {name: (m.shape, m.dtype) for name, m in masks.items()} == {
        name: (s.shape, torch.bool) for name, s in scores.items()
    }


def test_kept_scores_are_at_least_as_high_as_all_others():
    rng = torch.Generator().manual_seed(0)
    scores = {"a": torch.rand(5, 4, 3, 3, generator=rng), "b": 2 * torch.rand(40, generator=rng)}
    masks = keep_largest(scores, 0.7)
    kept = torch.cat([scores[n][masks[n]] for n in scores])
    lost = torch.cat([scores[n][~masks[n]] for n in scores])
    assert kept.min() >= lost.max()


@pytest.mark.parametrize("sparse", [0.0, 0.25, 0.5, 0.98])
def test_the_choice_is_that_of_a_stable_sort(sparse):
    scores = torch.randint(5, (200,), generator=torch.Generator().manual_seed(0)).float()
    order = scores.argsort(descending=True, stable=True)[: round((1 - sparse) * 200)]
    assert keep_largest({"w": scores}, sparse)["w"].nonzero().flatten().tolist() == sorted(order.tolist())


def test_the_memory_layout_does_not_matter():
    scores = torch.rand(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    other = scores.to(memory_format=torch.channels_last)
    assert torch.equal(keep_largest({"w": scores}, 0.8)["w"], keep_largest({"w": other}, 0.8)["w"])


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="NaN or infinite"):
        keep_largest({"w": torch.tensor([1.0, float("nan")])}, 0.5)


def test_masks_zero_weights_of_either_sign_and_infinite_ones(net):
    with torch.no_grad():
        net.head.weight[0, 0] = float("inf")
    masks = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in prunable(net).items()}
    apply_masks(net, masks)
    for weight in prunable(net).values():
        assert torch.equal(weight, torch.zeros_like(weight))
        assert not torch.signbit(weight).any()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_held_masks_outlive_momentum_and_weight_decay(net, optimizer):
    class State:
        model = net

    masks = keep_largest({n: w.detach().abs() for n, w in prunable(net).items()}, 0.8)
    more = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    steps = optimizer(net.parameters(), lr=0.1, weight_decay=0.1, **more)
    hold = HoldMasks(masks)
    hold.on_start(State)
    before = copy.deepcopy(net.state_dict())
    x, y = torch.rand(8, 3, 6, 6), torch.arange(8) % 4
    for _ in range(3):
        steps.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        steps.step()
        hold.on_step(State)
        for name, weight in prunable(net).items():
            assert not weight[~masks[name]].any()
    assert any((weight != before[name]).any() for name, weight in prunable(net).items())
    assert net.state_dict().keys() == before.keys()


def test_a_callback_is_named_by_its_masks():
    a, b = torch.tensor([True, False, True]), torch.tensor([True, True, True])
    assert str(HoldMasks({"w": a})) == str(HoldMasks({"w": a.clone()}))
    assert len({str(HoldMasks(m)) for m in ({"w": a}, {"w": b}, {"v": a})}) == 3
