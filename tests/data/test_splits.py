import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.data import Images, split, split_indices
from holdfast.data.splits import apportion
from holdfast.errors import UserError
from holdfast.run import Run

labels = st.lists(st.integers(0, 5), min_size=12, max_size=150).map(lambda y: torch.tensor(y))
thirds = st.sampled_from(
    [
        {"train": 0.8, "val": 0.1, "test": 0.1},
        {"a": 0.5, "b": 0.25},
        {"a": 1.0},
        {"a": 0.34, "b": 0.33, "c": 0.33},
        {"train": 0.6, "val": 0.15, "test": 0.25},
    ]
)


@given(y=labels, fractions=thirds, seed=st.integers(0, 3))
def test_splits_are_disjoint_stratified_reproducible_and_keep_every_class(y, fractions, seed):
    found = split_indices(y, fractions, Run(seed=seed))
    again = split_indices(y, fractions, Run(seed=seed))
    every = torch.cat(list(found.values()))
    assert len(every) == len(every.unique())
    assert all(torch.equal(found[k], again[k]) for k in found)
    if abs(sum(fractions.values()) - 1) < 1e-9:
        assert len(every) == len(y)
    for name, fraction in fractions.items():
        assert torch.equal(found[name], found[name].sort().values)
        for k in y.unique():
            size, got = int((y == k).sum()), int((y[found[name]] == k).sum())
            if size >= len(fractions):
                assert got >= 1
            # Within one of its share, but for a place that another split or this one needed to have any.
            assert got <= max(1, size * fraction + 1)
            assert got >= size * fraction - 1 - len(fractions)


@given(size=st.integers(2, 40), classes=st.integers(1, 30))
def test_split_sizes_come_out_right_though_each_class_is_rounded(size, classes):
    y = torch.arange(classes).repeat_interleave(size)
    fractions = {"train": 0.6, "val": 0.15, "test": 0.25}
    if size < 8:
        return  # then keeping every class in every split decides the sizes
    found = split_indices(y, fractions, Run())
    for name, fraction in fractions.items():
        assert abs(len(found[name]) - fraction * len(y)) <= 1.5


def test_another_seed_gives_another_split():
    y = torch.arange(100) % 4
    one, two = (split_indices(y, {"a": 0.5}, Run(seed=s))["a"] for s in (0, 1))
    assert not torch.equal(one, two)


def test_images_keep_their_columns_and_order():
    x = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 1, 4, 4)
    images = Images(x=x, y=torch.arange(20) % 2, classes=("a", "b"), columns={"row": torch.arange(20)}, name="toy")
    parts = split(images, {"train": 0.5, "test": 0.5}, Run())
    for part in parts.values():
        assert torch.equal(part.x[:, 0, 0, 0].long(), part.columns["row"])
        assert part.columns["row"].tolist() == sorted(part.columns["row"].tolist())
    assert parts["test"].name == "toy test"


@given(total=st.integers(0, 500), weights=st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_apportioned_numbers_are_within_one_of_their_share_and_add_up(total, weights):
    if sum(weights) < 1e-3:
        return
    counts = apportion(total, weights)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1
        if weight == 0:
            assert count == 0


@pytest.mark.parametrize("fractions", [{}, {"a": 0}, {"a": -0.1, "b": 0.5}, {"a": 0.7, "b": 0.7}, {"a": float("nan")}])
def test_fractions_that_make_no_sense_are_refused(fractions):
    with pytest.raises(UserError, match="split fractions must be above 0 and at most 1 in sum"):
        split_indices(torch.zeros(10, dtype=torch.int64), fractions, Run())


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="too few to split"):
        split_indices(torch.tensor([0, 1]), {"a": 0.5, "b": 0.3, "c": 0.2}, Run())
    with pytest.raises(UserError, match="too few to split"):
        split_indices(torch.tensor([], dtype=torch.int64), {"a": 0.5}, Run())
