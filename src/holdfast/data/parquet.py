"""Tables of encoded pictures: ``.parquet`` files with an image column and a ``label`` column."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from holdfast.data.decoded import decoded_images, stat_state
from holdfast.data.images import Images
from holdfast.data.labels import Labels, labels_of
from holdfast.data.pictures import Encoded
from holdfast.data.splits import FRACTIONS, split_indices
from holdfast.errors import UserError
from holdfast.run import Run

__all__ = ["WHOLE", "read_parquet"]

WHOLE = "all"

_IMAGES = ("img", "image", "images", "x", "bytes", "img.bytes", "image.bytes", "png", "jpg")
_LABELS = ("label", "labels", "fine_label", "y", "target", "class")


def read_parquet(
    paths: Mapping[str, Sequence[Path]], *, title: str, size: tuple[int, int] | None, channels: int | None, run: Run
) -> dict[str, Images]:
    """Read the splits of a data set, each one or several parquet files, with one decoded cache for all.

    The image column is ``img`` or ``image`` (binary, or a structure with a binary field ``bytes``), the label column
    ``label`` (whole numbers or text). Class names come from the schema's metadata: the key ``classes`` (a JSON list or
    names joined by commas) or that of Hugging Face. Other plain columns are kept.

    Args:
        paths: the files of each split; those of `WHOLE` are shared out among train, val and test, always the same way.
        title: what messages call the data.
        size: height and width to crop and resize to; by default all pictures must share one.
        channels: 1 or 3.
        run: for its progress bar.

    Raises:
        UserError: a file is no parquet table, or lacks such columns, or a picture cannot be read.
    """
    tables = {split: [_Table.open(path) for path in parts] for split, parts in paths.items()}
    every = tuple(table for parts in tables.values() for table in parts)
    found = _labels(every, title)
    rows = _rows_of(tables, found.y, title)
    # Rows are decoded in the order of the splits, so that each split is a view of one mapped array.
    order = torch.cat(list(rows.values()))
    x = decoded_images(_Rows(title, every, tuple(torch.argsort(order).tolist())), size=size, channels=channels, run=run)
    columns = _extra_columns(every)
    splits, start = {}, 0
    for split, index in rows.items():
        splits[split] = Images(
            x=x[start : start + len(index)],
            y=found.y[index],
            classes=found.classes,
            columns={
                name: values[index if isinstance(values, Tensor) else index.numpy()] for name, values in columns.items()
            },
            name=f"{title} {split}",
        )
        start += len(index)
    return splits


def _rows_of(tables: Mapping[str, Sequence[_Table]], y: Tensor, title: str) -> dict[str, Tensor]:
    """Which rows of all tables, one after the other, belong to which split."""
    if list(tables) == [WHOLE]:
        return split_indices(y, FRACTIONS, Run(scope=("parquet",)), title)
    counts = [sum(table.count for table in parts) for parts in tables.values()]
    return dict(zip(tables, torch.split(torch.arange(sum(counts)), counts), strict=True))


@dataclass(frozen=True)
class _Table:
    path: Path
    schema: pa.Schema
    count: int
    image: str
    field: str | None
    label: str

    @classmethod
    def open(cls, path: Path) -> _Table:
        try:
            with pq.ParquetFile(path) as file:
                schema, count = file.schema_arrow, file.metadata.num_rows
        except FileNotFoundError:
            raise UserError(f"{path}: no such file.") from None
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} cannot be read as a parquet table: {_first_line(error)}.") from None
        names = ", ".join(schema.names)
        image = next((name for name in _IMAGES if name in schema.names and _holds_bytes(schema.field(name).type)), None)
        label = next((name for name in _LABELS if name in schema.names), None)
        if image is None:
            raise UserError(
                f"{path}: no column holds encoded images; it needs 'img' or 'image' (binary, or a structure with "
                f"'bytes'), got columns {names}."
            )
        if label is None:
            raise UserError(f"{path}: no column holds labels; it needs 'label', got columns {names}.")
        if not count:
            raise UserError(f"{path}: the table is empty.")
        return cls(path, schema, count, image, "bytes" if pa.types.is_struct(schema.field(image).type) else None, label)

    def column(self, name: str) -> pa.ChunkedArray:
        with self.reading():
            return pq.read_table(self.path, columns=[name]).column(name)

    def reading(self) -> _Reading:
        return _Reading(self.path)

    def class_names(self) -> tuple[str, ...] | None:
        metadata = self.schema.metadata or {}
        if b"classes" in metadata:
            text = metadata[b"classes"].decode("utf-8", "replace")
            try:
                return tuple(map(str, json.loads(text))) if text.lstrip().startswith("[") else tuple(text.split(","))
            except ValueError:
                raise UserError(f"{self.path}: the metadata 'classes' is no JSON list, got {text[:60]!r}.") from None
        try:
            features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
            return tuple(map(str, features[self.label]["names"]))
        except (KeyError, TypeError, ValueError):
            return None


def _extra_columns(tables: Sequence[_Table]) -> dict[str, Tensor | np.ndarray[Any, Any]]:
    """The plain columns that all tables have, besides images and labels."""
    extra: dict[str, Tensor | np.ndarray[Any, Any]] = {}
    first = tables[0]
    for name in first.schema.names:
        kind = first.schema.field(name).type
        if name in (first.image, first.label) or not all(name in table.schema.names for table in tables):
            continue
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if not numeric and not _is_text(kind):
            continue
        columns = [table.column(name) for table in tables]
        if numeric and not any(column.null_count for column in columns):
            extra[name] = torch.from_numpy(np.concatenate([column.to_numpy() for column in columns]))
        else:
            values = [value for column in columns for value in column.to_pylist()]
            extra[name] = np.asarray(["" if value is None else str(value) for value in values], dtype=np.str_)
    return extra


class _Reading:
    """Turns pyarrow's complaints about damaged files into a sentence."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pa.ArrowException | OSError):
            raise UserError(f"{self.path} is damaged: {_first_line(error)}.") from None


@dataclass(frozen=True)
class _Rows:
    """The pictures of several tables, one after the other."""

    title: str
    tables: tuple[_Table, ...]
    places: tuple[int, ...]

    @property
    def identity(self) -> str:
        return "|".join(str(table.path.resolve()) for table in self.tables)

    @property
    def state(self) -> str:
        places = hashlib.sha256(np.asarray(self.places).tobytes()).hexdigest()
        return f"{stat_state([table.path.resolve() for table in self.tables])}|{places}"

    def __len__(self) -> int:
        return sum(table.count for table in self.tables)

    def __iter__(self) -> Iterator[Encoded]:
        places = iter(self.places)
        for table in self.tables:
            column = f"{table.image}.{table.field}" if table.field else table.image
            with table.reading(), pq.ParquetFile(table.path) as file:
                row = 0
                for batch in file.iter_batches(batch_size=1024, columns=[column]):
                    values = batch.column(0)
                    for value in values.field("bytes") if table.field else values:
                        content = value.as_py()
                        name = f"{table.path}, row {row}"
                        if content is None:
                            raise UserError(f"{name} holds no image.")
                        yield Encoded(next(places), name, content)
                        row += 1


def _labels(tables: Sequence[_Table], title: str) -> Labels:
    names = {table.class_names() for table in tables} - {None}
    if len(names) > 1:
        raise UserError(f"{title}: the tables name different classes.")
    values = []
    for table in tables:
        column = table.column(table.label)
        if column.null_count:
            raise UserError(f"{table.path}: {column.null_count} labels are missing.")
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if not _is_text(kind) and not pa.types.is_integer(kind) and not pa.types.is_floating(kind):
            raise UserError(f"{table.path}: labels must be whole numbers or text, got {column.type}.")
        values.append(np.asarray(column.to_pylist()))
    return labels_of(values, names.pop() if names else None, title)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
