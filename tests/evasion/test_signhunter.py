import itertools

import pytest
import torch
from torch import nn

from holdfast.evasion import SignHunter
from holdfast.evasion.signhunter import chunks
from holdfast.models import build_model
from holdfast.run import Run


class Watched(nn.Module):
    """Keeps what it is shown; copies share the record."""

    def __init__(self, model, record):
        super().__init__()
        self.model, self.record = model, record

    def __deepcopy__(self, memo):
        return Watched(self.model, self.record)

    def forward(self, x):
        self.record.append(x.detach().clone())
        return self.model(x)


def test_only_corners_of_the_ball_are_queried():
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=Run(seed=3)).eval()
    x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    x[:, :, :4].round_()
    with torch.no_grad():
        y = model(x).argmax(1)
    record = []
    outcome = SignHunter(eps=0.004, queries=900).run(Watched(model, record), x, y, run=Run())
    assert not outcome.success.any()
    low, high = (x - 0.004).clamp(0, 1), (x + 0.004).clamp(0, 1)
    queried = [points for points in record if len(points) == 1][-901:]
    assert all(((p == low) | (p == high)).all() for p in queried)
    assert torch.equal(queried[0], high)
    assert torch.equal(queried[1], low), "the first flip is of all signs"


class Linear(nn.Module):
    def __init__(self, pixels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(pixels, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        score = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([torch.full_like(score, 1e3), score], 1)


@pytest.mark.parametrize("size", [4, 5])
def test_on_a_linear_model_one_sweep_finds_all_signs(size):
    """Twice the number of pixels suffices, and a power of two is not needed."""
    model = Linear(size * size)
    x = torch.full((1, 1, size, size), 0.5)
    sweep = len(chunks(size * size))
    assert sweep <= 3 * size * size
    attack = SignHunter(eps=0.1, queries=1 + sweep)
    x_adv = attack(model, x, torch.zeros(1, dtype=torch.int64), run=Run())
    assert torch.equal((x_adv - x).sign(), model.weight.detach().sign().view(x.shape))


@pytest.mark.parametrize("pixels", [1, 2, 7, 8, 60])
def test_every_level_of_a_sweep_covers_all_pixels_once(pixels):
    groups = chunks(pixels).tolist()
    levels, at = [], 0
    for start, end in groups:
        assert start < end
        if start == 0:
            levels.append([])
        levels[-1].append((start, end))
    for level in levels:
        assert level[0][0] == 0
        assert level[-1][1] == pixels
        assert all(a[1] == b[0] for a, b in itertools.pairwise(level))
        at += len(level)
    assert [len(level) for level in levels[:2]] == [1, 2][: len(levels)]
    assert len(levels[-1]) == pixels


def test_a_second_sweep_starts_from_what_the_first_has_found():
    model = build_model("convnet", num_classes=4, image_shape=(1, 4, 4), run=Run(seed=3)).eval()
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    sweep = len(chunks(16))
    losses = []
    for queries in (1 + sweep, 1 + 2 * sweep, 1 + 3 * sweep):
        logits = SignHunter(eps=0.001, queries=queries).run(model, x, y, run=Run()).logits
        truth = logits.gather(1, y[:, None]).squeeze(1)
        losses.append(logits.scatter(1, y[:, None], -9e9).amax(1) - truth)
    assert (losses[1] >= losses[0] - 1e-6).all()
    assert (losses[2] >= losses[1] - 1e-6).all()


def test_flips_without_effect_are_kept():
    """On a plateau, as a guard or rounding makes them, the search must wander."""

    class Steps(nn.Module):
        def forward(self, x):
            score = (x.mean((1, 2, 3)) * 4).floor()
            return torch.stack([torch.full_like(score, 9.0), score], 1)

    x = torch.full((1, 1, 2, 2), 0.5)
    x_adv = SignHunter(eps=0.01, queries=3)(Steps(), x, torch.zeros(1, dtype=torch.int64), run=Run())
    # All up, then all down (worse, for the mean falls below the step at 0.5), then the first half: the mean is 0.5.
    assert torch.allclose((x_adv - x)[0, 0], torch.tensor([[-0.01, -0.01], [0.01, 0.01]]), atol=1e-6)
