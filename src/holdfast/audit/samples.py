"""The per-sample table: one row per image, and what each check says of it.

Every rate in the audit is a mean over some of these rows. Columns are named ``CHECK.NAME``; where a check says nothing
of an image (another split, or beyond the images that the profile grants it) the cell is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from holdfast.audit.subject import UNKNOWN, Subject

__all__ = ["Columns", "sample_table"]

# By split, then by column.
Columns = Mapping[str, Mapping[str, Tensor]]


def sample_table(subject: Subject, columns: Columns) -> pa.Table:
    """Join the columns of all checks to one table.

    Args:
        subject: gives index, label, prediction and confidence of every split that has columns; the test split always
            has rows.
        columns: values of the first images of a split.
    """
    splits = ["test", *(split for split in columns if split != "test")]
    names = sorted({name for split in splits for name in columns.get(split, {})})
    parts = [_part(subject, split, columns.get(split, {})) for split in splits]
    # A column is missing from the splits of which its check says nothing; its type comes from those that have it.
    types = {name: next(p.schema.field(name).type for p in parts if name in p.schema.names) for name in names}
    return pa.concat_tables([_widened(part, types) for part in parts])


def _part(subject: Subject, split: str, columns: Mapping[str, Tensor]) -> pa.Table:
    predictions = subject.predictions(split)
    n = len(predictions)
    content: dict[str, Any] = {
        "split": pa.array([split] * n, pa.string()),
        "index": subject.indices(split),
        # Unknown images have no label among the classes.
        "label": pa.nulls(n, pa.int64()) if split.startswith(UNKNOWN) else predictions.y,
        "prediction": predictions.label,
        "confidence": _empty_where_nan(predictions.confidence),
    }
    for name, values in columns.items():
        content[name] = _padded(values.numpy(), n)
    return pa.table(content)


def _padded(values: NDArray[Any], n: int) -> pa.Array:
    given = _empty_where_nan(values)
    return pa.concat_arrays([given, pa.nulls(n - len(values), given.type)]) if len(values) < n else given


def _empty_where_nan(values: NDArray[Any]) -> pa.Array:
    return pa.array(values, mask=np.isnan(values) if values.dtype.kind == "f" else None)


def _widened(part: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    for name, type in types.items():
        if name not in part.schema.names:
            part = part.append_column(name, pa.nulls(part.num_rows, type))
    return part.select([*part.column_names[:5], *types])
