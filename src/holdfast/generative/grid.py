"""Generated images side by side, as a PNG."""

from __future__ import annotations

import io

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from holdfast.data.resize import recoloured
from holdfast.errors import UserError

__all__ = ["picture_grid"]

_SIDE = 64
_GAP = 2


def picture_grid(x: Float[Tensor, "n c h w"], columns: int) -> bytes:
    """A PNG of images in [0, 1], in rows of `columns`, small ones enlarged pixel by pixel.

    Raises:
        UserError: there are no images.
    """
    if not len(x):
        raise UserError("there are no images to show.")
    height, width = x.shape[-2:]
    scale = max(1, round(_SIDE / height))
    cell_h, cell_w = height * scale + _GAP, width * scale + _GAP
    rows = -(-len(x) // columns)
    sheet = Image.new("RGB", (columns * cell_w - _GAP, rows * cell_h - _GAP), "white")
    bytes_ = recoloured(x, 3).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for place, picture in enumerate(bytes_):
        tile = Image.fromarray(np.ascontiguousarray(picture))
        tile = tile.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(tile, (place % columns * cell_w, place // columns * cell_h))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()
