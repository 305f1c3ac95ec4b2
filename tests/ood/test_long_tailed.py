import pytest
import torch

from holdfast.data import LongTail
from holdfast.errors import UserError
from holdfast.ood.long_tailed import accuracy_when_rejecting, classes_by_frequency


def test_cifar_10_lt_falls_into_the_groups_of_the_published_code():
    counts = torch.tensor(LongTail(rho=100).sizes(5000, 10))
    groups = {name: which.nonzero().flatten().tolist() for name, which in classes_by_frequency(counts).items()}
    assert groups == {"many": [0, 1, 2], "medium": [3, 4, 5, 6], "few": [7, 8, 9]}


def test_groups_do_not_need_an_order_and_cover_all_classes():
    counts = torch.randint(1, 500, (101,), generator=torch.Generator().manual_seed(0))
    groups = classes_by_frequency(counts)
    assert (sum(which.long() for which in groups.values()) == 1).all()
    shuffled = torch.randperm(101, generator=torch.Generator().manual_seed(1))
    for name, which in classes_by_frequency(counts[shuffled]).items():
        assert torch.equal(which, groups[name][shuffled])
    assert counts[groups["few"]].max() < counts[groups["medium"]].min()


def test_classes_of_one_size_are_all_medium():
    assert classes_by_frequency(torch.full((10,), 7))["medium"].all()


def test_rejecting_the_wrong_ones_leaves_the_right_ones():
    right, scores = torch.tensor([True, False, True, False]), torch.tensor([0.1, 0.9, 0.2, 0.8])
    assert [accuracy_when_rejecting(right, scores, share) for share in (0, 0.25, 0.5)] == [0.5, 2 / 3, 1.0]
    assert accuracy_when_rejecting(right, -scores, 0.5) == 0
    with pytest.raises(UserError, match="a share in"):
        accuracy_when_rejecting(right, scores, 1.0)
