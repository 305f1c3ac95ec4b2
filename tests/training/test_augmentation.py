"""Crop, flip and cutout: every image its own draw, bytes and floats alike."""

import pytest
import torch
import torch.nn.functional as F

from holdfast.training import Crop, Cutout, Flip


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (40, 3, 9, 7), dtype=torch.uint8, generator=rng), torch.arange(40)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_crop_is_one_of_the_shifts_of_its_image_and_all_shifts_occur(batch):
    x, y = batch
    cropped, labels = Crop(padding=1)(x, y, rng=rng())
    padded = F.pad(x, [1] * 4)
    shifts = [padded[:, :, i : i + 9, j : j + 7] for i in range(3) for j in range(3)]
    matches = torch.stack([(cropped == shift).flatten(1).all(1) for shift in shifts])
    assert matches.sum(0).eq(1).all()
    assert matches.any(1).all()
    assert torch.equal(labels, y)


def test_no_padding_is_no_crop(batch):
    assert torch.equal(Crop(padding=0)(*batch, rng=rng())[0], batch[0])


def test_a_flip_mirrors_left_and_right_for_the_share_it_should(batch):
    x, y = batch
    flipped = Flip()(x, y, rng=rng())[0]
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    same = (flipped == x).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 10 <= mirrored.sum() <= 30
    assert torch.equal(Flip(p=1)(x, y, rng=rng())[0], x.flip(3))
    assert torch.equal(Flip(p=0)(x, y, rng=rng())[0], x)


def test_cutout_blacks_out_one_square_per_image(batch):
    x, y = batch
    cut = Cutout(size=3)(x, y, rng=rng())[0]
    for image in (cut == 0).all(1):
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        assert 2 <= len(rows) <= 3
        assert 2 <= len(columns) <= 3
        assert image.sum() == len(rows) * len(columns)
    assert torch.equal(cut[cut != 0], x[cut != 0])
    assert len({tuple(image.flatten().tolist()) for image in (cut == 0).all(1)}) > 10


@pytest.mark.parametrize("transform", [Crop(padding=2), Flip(), Cutout(size=4)])
def test_bytes_and_floats_are_changed_alike_and_the_given_batch_is_left_alone(batch, transform):
    x, y = batch
    before = x.clone()
    on_bytes = transform(x, y, rng=rng())[0]
    on_floats = transform(x.float().div(255), y, rng=rng())[0]
    assert torch.equal(on_bytes.float().div(255), on_floats)
    assert on_bytes.dtype == torch.uint8
    assert torch.equal(x, before)
    assert not torch.equal(on_bytes, transform(x, y, rng=rng(1))[0])
