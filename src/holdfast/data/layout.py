"""Arrays of pixels in any usual layout to N, C, H, W."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import UserError

__all__ = ["nchw"]


def nchw(array: np.ndarray[Any, Any] | Tensor, title: str) -> Tensor:
    """Bring images to shape (N, C, H, W) and to uint8 or float32, without copying where that is possible.

    Args:
        array: (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels. Whole numbers must lie in 0..255; floats
            are left for `Images` to judge. Where both readings are possible, channels come first.
        title: what messages call it.

    Raises:
        UserError: shape, type or range is none of these.
    """
    x = array if isinstance(array, Tensor) else _tensor(array, title)
    if x.ndim == 3:
        x = x.unsqueeze(1)
    if x.ndim != 4:
        shape = tuple(x.shape)
        raise UserError(f"{title}: images must have shape (N, H, W), (N, H, W, C) or (N, C, H, W), got {shape}.")
    if x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.shape[1] not in (1, 3):
        raise UserError(f"{title}: images must have 1 or 3 channels, got shape {tuple(x.shape)}.")
    if x.dtype == torch.uint8 or x.dtype == torch.float32:
        return x
    if x.is_floating_point():
        return x.float()
    if x.dtype == torch.bool or x.is_complex():
        raise UserError(f"{title}: images must be bytes in 0..255 or floats in [0, 1], got {x.dtype}.")
    if len(x) and not 0 <= int(x.min()) <= int(x.max()) <= 255:
        raise UserError(f"{title}: whole-number images must lie in 0..255, got {int(x.min())}..{int(x.max())}.")
    return x.to(torch.uint8)


def _tensor(array: np.ndarray[Any, Any], title: str) -> Tensor:
    if array.dtype.kind not in "uif":
        raise UserError(f"{title}: images must be bytes in 0..255 or floats in [0, 1], got {array.dtype}.")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # PyTorch's wide unsigned types lack most operations
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())
