"""Labels as users keep them (numbers, text, columns of one) to class indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from holdfast.errors import UserError

__all__ = ["Labels", "labels_of"]


@dataclass(frozen=True)
class Labels:
    """Class indices with the class names."""

    y: Int64[Tensor, " n"]
    classes: tuple[str, ...]


def labels_of(parts: Sequence[np.ndarray[Any, Any]], classes: Sequence[str] | None, title: str) -> Labels:
    """Class indices from whole numbers or text.

    Args:
        parts: the labels of each split, (N,) or (N, 1); whole numbers are indices, text names classes.
        classes: the names in label order; ``None`` takes the sorted names that occur, or the numbers up to the largest.
        title: what messages call the data.

    Returns:
        The labels of all splits, one after the other.

    Raises:
        UserError: the values are neither, or do not fit the classes.
    """
    values = np.concatenate([_column(part, title) for part in parts])
    if len({part.dtype.kind in "US" for part in parts}) > 1:
        raise UserError(f"{title}: labels are text in one split and numbers in another.")
    if not len(values):
        raise UserError(f"{title}: there are no labels.")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "U":
        return _from_text(values, classes, title)
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.round(values)).all():
        values = values.astype(np.int64)
    if values.dtype.kind not in "iu":
        raise UserError(f"{title}: labels must be whole numbers or text, got {values.dtype}.")
    y = values.astype(np.int64)
    if y.min() < 0:
        raise UserError(f"{title}: labels must be 0 or above, got {y.min()}.")
    if classes is None:
        if y.max() >= 2**20:
            raise UserError(f"{title}: labels must be class indices counted from 0, got {y.max()}.")
        classes = tuple(map(str, range(int(y.max()) + 1)))
    if y.max() >= len(classes):
        raise UserError(
            f"{title}: labels must lie in 0..{len(classes) - 1} for {len(classes)} classes, got {y.min()}..{y.max()}."
        )
    return Labels(torch.from_numpy(y), tuple(map(str, classes)))


def _from_text(values: np.ndarray[Any, Any], classes: Sequence[str] | None, title: str) -> Labels:
    found, y = np.unique(values, return_inverse=True)
    if classes is None:
        return Labels(torch.from_numpy(y.astype(np.int64)), tuple(map(str, found)))
    index = {name: place for place, name in enumerate(classes)}
    strangers = [name for name in found if name not in index]
    if strangers:
        raise UserError(f"{title}: the label {str(strangers[0])!r} is none of the classes {', '.join(classes)}.")
    places = np.asarray([index[name] for name in found], dtype=np.int64)
    return Labels(torch.from_numpy(places[y]), tuple(classes))


def _column(values: np.ndarray[Any, Any], title: str) -> np.ndarray[Any, Any]:
    if values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    if values.ndim != 1:
        raise UserError(f"{title}: labels must be one per image, got shape {values.shape} (one-hot rows?).")
    return values
