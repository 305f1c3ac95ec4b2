"""Crop, flip and cutout: every image its own draw, bytes and floats alike. Changes of colour, on floats."""

import colorsys

import pytest
import torch
import torch.nn.functional as F

from holdfast.training import ColorJitter, Crop, Cutout, Flip, Grayscale
from holdfast.training.color_jitter import hue_turned


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


@pytest.fixture
def colours():
    return torch.rand(40, 3, 6, 5, generator=torch.Generator().manual_seed(1)), torch.arange(40)


def test_the_hue_turns_as_the_standard_library_turns_it(colours):
    x = colours[0]
    by = torch.linspace(-0.5, 0.5, len(x)).view(-1, 1, 1, 1)
    turned = hue_turned(x, by)
    for image in (0, 7, 39):
        for place in ((0, 0), (3, 2), (5, 4)):
            hue, saturation, value = colorsys.rgb_to_hsv(*x[image, :, *place].tolist())
            wanted = colorsys.hsv_to_rgb((hue + by[image].item()) % 1, saturation, value)
            assert turned[image, :, *place].tolist() == pytest.approx(wanted, abs=1e-5)
    torch.testing.assert_close(hue_turned(x, torch.zeros(len(x), 1, 1, 1)), x)
    torch.testing.assert_close(hue_turned(x[:, :1].expand(-1, 3, -1, -1), by), x[:, :1].expand(-1, 3, -1, -1))


def test_colour_jitter_changes_the_share_it_should_and_what_is_switched_off_stays(colours):
    x, y = colours
    jittered = ColorJitter(p=0.5)(x, y, rng=rng())[0]
    changed = (jittered != x).flatten(1).any(1)
    assert 10 <= changed.sum() <= 30
    assert 0 <= jittered.min() <= jittered.max() <= 1
    assert torch.equal(ColorJitter(brightness=0, contrast=0, saturation=0, hue=0, p=1)(x, y, rng=rng())[0], x)
    brighter = ColorJitter(contrast=0, saturation=0, hue=0, p=1)(x * 0.5, y, rng=rng())[0]
    factor = brighter / (x * 0.5)
    assert ((factor.amax((1, 2, 3)) - factor.amin((1, 2, 3))).abs() < 1e-4).all()
    assert 0.6 <= factor.min() < 0.8 < 1.2 < factor.max() <= 1.4001


def test_contrast_keeps_the_mean_grey_and_saturation_every_pixel_s(colours):
    x, y = colours[0] * 0.4 + 0.3, colours[1]
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    contrast = ColorJitter(brightness=0, contrast=0.3, saturation=0, hue=0, p=1)(x, y, rng=rng())[0]
    saturation = ColorJitter(brightness=0, contrast=0, saturation=0.3, hue=0, p=1)(x, y, rng=rng())[0]
    torch.testing.assert_close((contrast * luma).sum(1).mean((1, 2)), (x * luma).sum(1).mean((1, 2)))
    torch.testing.assert_close((saturation * luma).sum(1), (x * luma).sum(1))
    assert (contrast - x).abs().mean() > 0.01
    assert (saturation - x).abs().mean() > 0.01


def test_grey_images_lose_and_gain_no_colour(colours):
    x, y = colours
    grey = Grayscale(p=1)(x, y, rng=rng())[0]
    assert torch.equal(grey[:, :1].expand(-1, 3, -1, -1), grey)
    some = Grayscale(p=0.5)(x, y, rng=rng())[0]
    assert 10 <= (some == grey).flatten(1).all(1).sum() <= 30
    assert torch.equal(Grayscale(p=1)(x[:, :1], y, rng=rng())[0], x[:, :1])
    assert ColorJitter()(x[:, :1], y, rng=rng())[0].shape == (40, 1, 6, 5)
