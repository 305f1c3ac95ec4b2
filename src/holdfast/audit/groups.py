"""Groups of images by a named column: ``group``, ``domain``, and both crossed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.data import Images
from holdfast.errors import UserError

__all__ = ["COLUMNS", "grouping", "groupings"]

COLUMNS = ("group", "domain")

_MOST = 100


def grouping(images: Images, column: str) -> dict[str, NDArray[np.bool_]]:
    """By value of a column, which images have it; in the order of the values, nothing when there is no such column.

    Raises:
        UserError: the column is no list of categories.
    """
    if column not in images.columns:
        return {}
    values: NDArray[Any] = np.asarray(images.columns[column])
    if values.ndim != 1:
        raise UserError(f"The column {column!r} must hold one value per image, but has shape {values.shape}.")
    found = np.unique(values)
    if len(found) > _MOST:
        raise UserError(f"The column {column!r} has {len(found)} different values; groups are meant to be few.")
    return {str(value): values == value for value in found}


def groupings(images: Images) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """All ways the images are grouped: by each column, and by both crossed."""
    by = {column: groups for column in COLUMNS if len(groups := grouping(images, column)) > 1}
    if len(by) == 2:
        by["group and domain"] = {
            f"{a}, {b}": which
            for a, first in by["group"].items()
            for b, second in by["domain"].items()
            if (which := first & second).any()
        }
    return by
