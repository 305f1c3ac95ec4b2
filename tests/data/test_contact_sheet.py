import io

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.data import Images, contact_sheet, load_data
from holdfast.errors import UserError


def test_each_class_has_a_row_of_its_own_pictures():
    x = torch.cat([torch.full((3, 1, 8, 8), 0.2), torch.full((3, 1, 8, 8), 0.8)])
    images = Images(x=x, y=torch.tensor([0, 0, 0, 2, 2, 2]), classes=("ant", "none", "猫"))
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(images, 2))))
    pictures = sheet[:, 120:]
    assert pictures.shape == (2 * 66, 2 * 66, 3)
    assert (pictures[:64, :64] == 51).all()
    assert (pictures[66:130, 66:130] == 204).all()


def test_large_and_colour_images_fit_too():
    assert contact_sheet(load_data("shapes32(n=20, size=100)").test)[:4] == b"\x89PNG"


def test_nothing_to_show_is_said():
    with pytest.raises(UserError, match="no images to show"):
        contact_sheet(Images(x=torch.zeros(0, 1, 4, 4), y=torch.zeros(0, dtype=torch.int64), classes=("a",)))
