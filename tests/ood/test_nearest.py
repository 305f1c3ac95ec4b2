import pytest
import torch

from holdfast.ood import nearest
from holdfast.ood.nearest import largest


def gathered(queries, bank, k):
    values, entries = torch.full((len(queries), k), torch.nan), torch.full((len(queries), k), -1)
    for rows, found, where in largest(queries, bank, k):
        values[rows], entries[rows] = found, where
    return values, entries


def drawn(n, m, d=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=rng), torch.randn(m, d, generator=rng)


@pytest.mark.parametrize("m", [1, 63, 64, 65, 1000, 6400])
@pytest.mark.parametrize("k", [1, 7, 16, 100])
def test_they_are_those_of_a_full_sort(m, k):
    queries, bank = drawn(50, m)
    k = min(k, m)
    values, entries = gathered(queries, bank, k)
    every = queries @ bank.T
    torch.testing.assert_close(values, every.sort(dim=1, descending=True).values[:, :k])
    torch.testing.assert_close(every.gather(1, entries), values)
    assert all(len(set(row.tolist())) == k for row in entries)


@pytest.mark.parametrize(("pairs", "block"), [(1, 1), (1, 7), (700, 1), (10**6, 64)])
def test_blocks_change_nothing(monkeypatch, pairs, block):
    queries, bank = drawn(100, 650)
    whole = gathered(queries, bank, 5)
    monkeypatch.setattr(nearest, "_PAIRS", pairs)
    monkeypatch.setattr(nearest, "_QUERIES", block)
    values, entries = gathered(queries, bank, 5)
    torch.testing.assert_close(values, whole[0])
    assert torch.equal(entries, whole[1])


def test_the_nearest_may_all_lie_in_one_group():
    queries, bank = drawn(20, 1000)
    bank[128:192] = 100 * torch.ones(8)
    bank[128:192] += 0.01 * torch.arange(64)[:, None]
    _, entries = gathered(queries.abs(), bank, 15)
    assert torch.equal(entries, torch.arange(191, 176, -1).expand(20, -1))


def test_equal_similarities_are_counted_each():
    queries, bank = drawn(5, 20)
    values, entries = gathered(queries, bank.repeat(50, 1), 30)
    every = (queries @ bank.T).sort(dim=1, descending=True).values[:, :1]
    torch.testing.assert_close(values, every.expand(-1, 30))
    assert all(len(set(row.tolist())) == 30 for row in entries)


def test_filling_up_the_last_group_adds_no_neighbour():
    queries, bank = drawn(5, 70)
    values, entries = gathered(queries.abs(), -bank.abs(), 1)  # zeros, as a filling, would be nearer than any
    assert (values < 0).all()
    assert (entries < 70).all()
