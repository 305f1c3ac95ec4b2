import torch

from holdfast.data import Images
from holdfast.data.order import fair_order, first_images


def images(y):
    return Images(x=torch.zeros(len(y), 1, 2, 2), y=torch.tensor(y), classes=tuple("abcd"))


def rng():
    return torch.Generator().manual_seed(0)


def test_a_mixed_split_keeps_its_order():
    mixed = images([i % 4 for i in range(400)])
    assert fair_order(mixed, rng()) is None
    first = first_images(mixed, 10, rng())
    assert first.y.tolist() == mixed.y[:10].tolist()
    assert first.columns["index"].tolist() == list(range(10))


def test_a_split_sorted_by_class_is_mixed_first():
    given = images(sorted(i % 4 for i in range(400)))
    first = first_images(given, 100, rng())
    assert first.y.bincount(minlength=4).min() >= 10
    assert torch.equal(first.y, given.y[first.columns["index"]])
    assert torch.equal(first_images(given, 50, rng()).columns["index"], first.columns["index"][:50])
    assert len(first_images(given, None, rng())) == 400
