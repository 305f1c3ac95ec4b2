"""Recorded passes on a GPU: the same results as plain ones, and plain ones where there can be no recording."""

import pytest
import torch
from torch import nn

from holdfast.models import Replays, build_model

pytestmark = pytest.mark.cuda


def gradient_of(model):
    def work(x, y):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(model(x), y, reduction="none")
        return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]

    return work


@pytest.fixture
def net(run):
    model = build_model("resnet20", num_classes=10, image_shape=(3, 32, 32), run=run)
    return model.cuda().eval().to(memory_format=torch.channels_last)


@pytest.fixture
def run():
    from holdfast.run import Run

    return Run(device="cuda")


def batch(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, 32, 32, generator=generator).cuda().contiguous(memory_format=torch.channels_last)
    return x, torch.randint(0, 10, (count,), generator=generator).cuda()


def recorded(replays):
    return [r for r in replays._recorded.values() if r is not None]


@pytest.mark.parametrize("counts", [[64] * 6, [64, 63, 40, 33, 64, 50], [5, 1, 7, 32, 31]])
def test_a_replay_gives_what_the_plain_pass_gives_for_any_number_of_rows(net, counts):
    replays, work = Replays("cuda"), gradient_of(net.double())
    for i, count in enumerate(counts):
        x, y = batch(count, i)
        x = x.double()
        for a, b in zip(replays("g", work, x, y), work(x, y), strict=True):
            assert float((a - b).norm()) <= 0.02 * float(b.norm())
    assert len(recorded(replays)) == 1


def test_a_replay_sees_weights_that_changed_in_place(net):
    replays, work = Replays("cuda"), gradient_of(net)
    x, y = batch(64)
    for _ in range(4):
        before = replays("g", work, x, y)[0]
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(1.1)
    after = replays("g", work, x, y)[0]
    assert recorded(replays)
    assert not torch.allclose(before, after)
    assert torch.allclose(after, work(x, y)[0], rtol=1e-3)


def test_results_are_the_callers_to_keep(net):
    replays, work = Replays("cuda"), gradient_of(net)
    results = [replays("g", work, *batch(64, i))[1] for i in range(6)]
    kept = [r.clone() for r in results]
    replays("g", work, *batch(64, 9))
    assert all(torch.equal(a, b) for a, b in zip(results, kept, strict=True))


class ReadsBack(nn.Module):
    """Decides by a value, which no recording can."""

    def forward(self, x):
        return x.flatten(1)[:, :10] * (2.0 if float(x.mean()) > 0.5 else 1.0)


class Random(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] + torch.randn(len(x), 10, device=x.device)


class Moody(nn.Module):
    """Answers by a counter on the CPU, which a recording would freeze."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x.flatten(1)[:, :10] * self.calls


@pytest.mark.parametrize("model", [ReadsBack(), Random(), Moody()])
def test_what_cannot_be_recorded_or_does_not_repeat_itself_runs_plainly(model):
    replays, work = Replays("cuda"), gradient_of(model)
    x, y = batch(64)
    for _ in range(5):
        replays("g", work, x, y)
    assert not recorded(replays)
    assert float(torch.ones(3, device="cuda").sum()) == 3  # the device is still in order
