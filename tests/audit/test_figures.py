import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.audit.numbers import bound, quantity
from holdfast.audit.pictures import difference, picture


def opened(shown):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.png))))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_lossless_and_the_same_from_bytes_and_floats(channels):
    pixels = torch.randint(0, 256, (channels, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = pixels[0].numpy() if channels == 1 else pixels.permute(1, 2, 0).numpy()
    assert (opened(picture(pixels)) == expected).all()
    assert picture(pixels.float() / 255).png == picture(pixels).png


def test_differences_are_amplified_around_grey():
    clean = torch.full((1, 2, 2), 0.5)
    changed = clean.clone()
    changed[0, 0, 0] += 4 / 255
    changed[0, 1, 1] -= 2 / 255
    shown = difference(clean, changed)
    assert opened(shown)[0, 0] == 255
    assert opened(shown)[1, 1] == pytest.approx(64, abs=1)
    assert opened(shown)[0, 1] == 128
    assert shown.note == "amplified 32x"
    assert (opened(difference(clean, clean)) == 128).all()


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.913, "rate", "91.3 %"),
        (0.00004, "rate", "0.004 %"),
        (-0.0004, "points", "-0.04 points"),
        (0.0, "rate", "0.0 %"),
        (12.345, "ms", "12.3 ms"),
        (0.98765, "value", "0.988"),
        (94186.0, "count", "94,186"),
        (3e-7, "value", "3.0e-07"),
    ],
)
def test_numbers_read_well(value, unit, text):
    assert quantity(value, unit) == text


def test_limits_are_written_as_they_were_set():
    assert bound(0.02, "rate") == "2 %"
    assert bound(0.125, "points") == "12.5 points"
    assert bound(1e-4, "value") == "0.0001"
