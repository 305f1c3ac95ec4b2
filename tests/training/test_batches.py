import pytest
import torch

from holdfast.run import Run
from holdfast.training.batches import Plan, evaluation_batches, one_ahead, prepare


@pytest.mark.parametrize(("count", "ranks", "accumulate"), [(48, 1, 1), (50, 2, 1), (53, 3, 2), (7, 2, 1)])
def test_processes_see_disjoint_images_and_equally_many(count, ranks, accumulate):
    plans = [Plan(count=count, batch_size=4, accumulate=accumulate, rank=rank, ranks=ranks) for rank in range(ranks)]
    seen = []
    for step in plans[0].batches(0, Run()):
        shares = [torch.cat(plan.parts(step)) for plan in plans]
        assert len({len(share) for share in shares}) == 1
        seen += [i for share in shares for i in share.tolist()]
    assert len(seen) == len(set(seen))
    assert count - len(seen) < 2 * ranks * accumulate


def test_every_image_is_seen_once_per_epoch_in_an_order_of_its_own():
    plan, run = Plan(count=20, batch_size=8), Run()
    epochs = [plan.batches(epoch, run) for epoch in range(2)]
    assert all(sorted(torch.cat(steps).tolist()) == list(range(20)) for steps in epochs)
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    assert [len(part) for step in epochs[0] for part in plan.parts(step)] == [8, 8, 4]


def test_a_batch_of_one_is_left_out_because_batch_norm_cannot_use_it():
    assert Plan(count=17, batch_size=8).steps(0) == 2
    assert Plan(count=18, batch_size=8).steps(0) == 3
    assert Plan(count=1, batch_size=8).steps(0) == 1  # there is nothing else
    assert Plan(count=1, batch_size=8, ranks=2).steps(0) == 0


def test_a_batch_is_taken_by_index_and_scaled_to_one(noise):
    x, y = prepare(noise, torch.tensor([5, 3]), [], torch.Generator(), torch.device("cpu"))
    assert torch.equal(x, noise.x[[5, 3]].float() / 255)
    assert y.tolist() == [1, 3]


def test_evaluation_shares_cover_everything_once(noise):
    plans = [Plan(count=48, batch_size=8, rank=rank, ranks=3) for rank in range(3)]
    shares = [torch.cat([x for x, _ in evaluation_batches(noise, p, torch.device("cpu"))]) for p in plans]
    assert torch.equal(torch.cat(shares).sum(0), (noise.x.float() / 255).sum(0)) or torch.allclose(
        torch.cat(shares).sum(0), (noise.x.float() / 255).sum(0), atol=1e-5
    )
    assert sum(map(len, shares)) == 48


@pytest.mark.parametrize("count", [0, 1, 5])
def test_making_one_ahead_changes_neither_values_nor_order(count):
    assert list(one_ahead(lambda place: place**2, range(count))) == [place**2 for place in range(count)]


def test_an_error_while_making_ahead_reaches_the_loop():
    with pytest.raises(ZeroDivisionError):
        list(one_ahead(lambda place: 1 // (2 - place), range(4)))
