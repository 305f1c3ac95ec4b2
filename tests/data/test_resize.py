import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.data import recoloured, resized


def test_shrinking_averages_instead_of_skipping():
    x = torch.zeros(1, 1, 32, 32)
    x[..., ::2] = 1  # stripes as fine as can be
    assert (resized(x, (8, 8)) - 0.5).abs().max() < 0.13


@pytest.mark.parametrize("size", [(16, 16), (48, 48)])
def test_resizing_bytes_agrees_with_pillow(size):
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8))
    picture = Image.fromarray(x[0].permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    difference = resized(x, size)[0].permute(1, 2, 0).int() - torch.from_numpy(np.array(picture)).int()
    assert difference.abs().max() <= 1


def test_the_middle_is_cropped_to_the_new_aspect():
    x = torch.zeros(2, 3, 10, 30, dtype=torch.uint8)
    x[..., 10:20] = 200
    out = resized(x, (5, 5))
    assert out.shape == (2, 3, 5, 5)
    assert (out == 200).all()


def test_the_same_size_is_untouched_and_nothing_is_resized_to_nothing():
    x = torch.rand(2, 1, 5, 7)
    assert resized(x, (5, 7)) is x
    assert resized(x[:0], (3, 3)).shape == (0, 1, 3, 3)


def test_colour_to_grey_is_luma_and_grey_to_colour_repeats():
    x = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    x[:, 1] = 200
    assert recoloured(x, 1).unique().item() == round(0.587 * 200)
    assert recoloured(x.float() / 255, 1).max().item() == pytest.approx(0.587 * 200 / 255)
    assert torch.equal(recoloured(x[:, :1], 3), x[:, :1].expand(-1, 3, -1, -1))
