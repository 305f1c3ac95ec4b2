"""Images as small PNGs for the galleries; enlarging them is left to the page."""

from __future__ import annotations

import base64
import io

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from holdfast.audit.findings import Picture
from holdfast.data import to_float

__all__ = ["difference", "picture"]


def picture(x: Tensor, label: str = "", note: str = "") -> Picture:
    """An image (C, H, W), bytes or float in [0, 1], as a picture."""
    pixels = (to_float(x) * 255).round().clamp(0, 255).byte().cpu()
    image = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
    file = io.BytesIO()
    image.save(file, format="PNG")
    return Picture(png=base64.b64encode(file.getvalue()).decode("ascii"), label=label, note=note)


def difference(clean: Float[Tensor, "c h w"], changed: Float[Tensor, "c h w"]) -> Picture:
    """The difference of two float images around grey, amplified until it fills the range."""
    delta = changed.float() - clean.float()
    size = float(delta.abs().max())
    gain = 0.5 / size if size > 0 else 1.0
    return picture((0.5 + gain * delta).clamp(0, 1), "difference", f"amplified {gain:.0f}x")
