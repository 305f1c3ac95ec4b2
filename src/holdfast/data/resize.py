"""Images brought to another size or another number of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fitted", "recoloured", "resized"]

# Luma of ITU-R BT.601, as in Pillow's conversion to grey.
_LUMA = (0.299, 0.587, 0.114)
_CHUNK = 1024


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (N, C, H, W) at another height and width, bilinear, antialiased when they shrink.

    The aspect is kept: what does not fit the new one is cropped at the centre first. Bytes stay bytes, floats floats.
    """
    height, width = size
    h, w = x.shape[-2:]
    if (h, w) == (height, width):
        return x
    crop_h, crop_w = min(h, max(1, round(w * height / width))), min(w, max(1, round(h * width / height)))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    x = x[..., top : top + crop_h, left : left + crop_w]
    parts = [_scaled(part, size) for part in x.split(_CHUNK)]
    return torch.cat(parts) if parts else x.new_empty((0, x.shape[1], height, width))


def recoloured(x: Tensor, channels: int) -> Tensor:
    """Images with 1 channel (luma) or 3 (grey repeated)."""
    if x.shape[1] == channels:
        return x
    if channels == 3:
        return x.expand(-1, 3, -1, -1)
    weights = torch.tensor(_LUMA, device=x.device).view(1, 3, 1, 1)
    grey = [(part.float() * weights).sum(1, keepdim=True) for part in x.split(_CHUNK)]
    flat = torch.cat(grey) if grey else x.new_empty((0, 1, *x.shape[2:])).float()
    return flat.round_().to(torch.uint8) if x.dtype == torch.uint8 else flat.clamp_(0, 1)


def fitted(x: Tensor, size: tuple[int, int] | None, channels: int | None) -> Tensor:
    """Images resized and recoloured to what is asked for; ``None`` leaves that side as it is."""
    x = x if channels is None else recoloured(x, channels)
    return x if size is None else resized(x, size)


def _scaled(x: Tensor, size: tuple[int, int]) -> Tensor:
    scaled = F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8) if x.dtype == torch.uint8 else scaled.clamp_(0, 1)
