"""A contact sheet: a row of pictures for each class, to look at data before trusting a number made from it."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageDraw

from holdfast.data.images import Images, to_float
from holdfast.data.resize import recoloured
from holdfast.errors import UserError

__all__ = ["contact_sheet"]

_ROW = 64
_GAP = 2
_LEFT = 120
_CLASSES = 100


def contact_sheet(images: Images, per_class: int = 10) -> bytes:
    """A PNG with the first pictures of each class, of up to a hundred classes, named at the left.

    Raises:
        UserError: there are no images.
    """
    if not len(images):
        raise UserError(f"{images.name} holds no images to show.")
    height, width = images.x.shape[-2:]
    scale = max(1, round(_ROW / height))
    cell_h, cell_w = height * scale + _GAP, width * scale + _GAP
    shown = [k for k in range(images.num_classes) if (images.y == k).any()][:_CLASSES]
    sheet = Image.new("RGB", (_LEFT + per_class * cell_w, len(shown) * cell_h), "white")
    write = ImageDraw.Draw(sheet)
    for row, k in enumerate(shown):
        # Pillow's own font has only Latin-1.
        name = images.classes[k].encode("latin-1", "replace").decode("latin-1")
        write.text((4, row * cell_h + cell_h // 2 - 6), name[:18], fill="black")
        members = torch.nonzero(images.y == k).flatten()[:per_class]
        pictures = to_float(recoloured(images.x[members], 3)).mul(255).round().to(torch.uint8)
        for column, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
            tile = Image.fromarray(np.ascontiguousarray(picture))
            tile = tile.resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile, (_LEFT + column * cell_w, row * cell_h))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()
