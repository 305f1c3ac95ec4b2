import pytest
import torch
import torch.nn.functional as F

from holdfast.evasion.resizing import Resizing, canvas


def draws(n, seed=0):
    return torch.rand(n, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width", "factor"), [(32, 32, 1.1), (8, 8, 1.1), (30, 50, 1.3)])
def test_it_is_enlarging_padding_and_shrinking(height, width, factor):
    x = torch.rand(9, 3, height, width, generator=torch.Generator().manual_seed(1))
    numbers = draws(9)
    got = Resizing(numbers, 1.0, factor, height, width)(x)
    outer = [canvas(height, factor), canvas(width, factor)]
    for i, (_, size, down, across) in enumerate(numbers.tolist()):
        inner = [h + int(size * (o - h)) for h, o in zip((height, width), outer, strict=True)]
        big = F.interpolate(x[i : i + 1].double(), inner, mode="bilinear", align_corners=False)
        top, left = (int(u * (o - s + 1)) for u, o, s in zip((down, across), outer, inner, strict=True))
        padded = F.pad(big, [left, outer[1] - inner[1] - left, top, outer[0] - inner[0] - top])
        expected = F.interpolate(padded, [height, width], mode="bilinear", align_corners=False)
        torch.testing.assert_close(got[i : i + 1], expected.float(), atol=1e-6, rtol=0)


def test_the_way_back_is_the_transpose():
    x, g = torch.rand(2, 4, 3, 12, 10, generator=torch.Generator().manual_seed(2))
    resize = Resizing(draws(4), 0.5, 1.5, 12, 10)
    assert float((resize(x).double() * g).sum()) == pytest.approx(float((x * resize.back(g).double()).sum()), rel=1e-5)


def test_those_not_drawn_stay_as_they_are_bit_for_bit():
    x = torch.rand(400, 1, 6, 6, generator=torch.Generator().manual_seed(3)).contiguous(
        memory_format=torch.channels_last
    )
    numbers = draws(400)
    got = Resizing(numbers, 0.3, 1.2, 6, 6)(x)
    same = (got == x).all(3).all(2).all(1)
    assert torch.equal(same, numbers[:, 0] >= 0.3)
    assert got.stride() == x.stride()


def test_every_size_and_place_is_drawn():
    resize = Resizing(draws(500), 1.0, 1.25, 8, 8)  # sides 8 and 9 on a canvas of 10
    assert len({tuple(m.flatten().tolist()) for m in resize.down}) == 3 + 2
