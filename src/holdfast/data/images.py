"""`Images`, one split of labelled images, and `Data`, the named bundle of splits."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.data.loading import read_batches
from holdfast.errors import UserError

__all__ = ["Data", "Images", "concat", "to_float"]


def to_float(x: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: bytes are divided by 255, floats pass through."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x.float()


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """A split: images, labels, class names, and named extra columns.

    Args:
        x: uint8 (0..255) or float (0..1), shape (N, C, H, W), C in {1, 3}. May be a tensor over a memory-mapped file.
        y: int64 labels (N,), indices into `classes`.
        classes: the class names, in label order.
        columns: further values per image, each of length N (``group``, ``domain``, ``mask``, ``caption``, ...).
        name: for reports.

    Raises:
        UserError: shapes, types or ranges do not fit, or a value is not finite.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    columns: Mapping[str, Tensor | np.ndarray[Any, Any]] = field(default_factory=dict)
    name: str = "images"

    def __post_init__(self) -> None:
        x, y, name = self.x, self.y, self.name
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise UserError(f"{name}: images must have shape (N, 1 or 3, H, W), got {tuple(x.shape)}.")
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise UserError(f"{name}: images must be uint8 in 0..255 or float in [0, 1], got {x.dtype}.")
        if y.ndim != 1 or len(y) != len(x):
            raise UserError(f"{name}: {len(x)} images need {len(x)} labels in one dimension, got {tuple(y.shape)}.")
        if y.dtype != torch.int64:
            raise UserError(f"{name}: labels must be int64, got {y.dtype}.")
        if x.is_floating_point() and len(x):
            low, high = torch.aminmax(x)
            if not torch.isfinite(low) or not torch.isfinite(high):
                raise UserError(f"{name}: images hold NaN or infinite values.")
            if low < 0 or high > 1:
                raise UserError(
                    f"{name}: float images must lie in [0, 1], got {low:.3g} to {high:.3g}. Divide bytes by 255; leave "
                    "normalisation to the model's first layer."
                )
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(self.classes):
            raise UserError(
                f"{name}: labels must lie in 0..{len(self.classes) - 1} for {len(self.classes)} classes, "
                f"got {int(y.min())}..{int(y.max())}."
            )
        for column, values in self.columns.items():
            if len(values) != len(x):
                raise UserError(f"{name}: column {column!r} has {len(values)} values for {len(x)} images.")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        c, h, w = self.x.shape[1:]
        return c, h, w

    @property
    def num_classes(self) -> int:
        """The number of classes, present in this split or not."""
        return len(self.classes)

    def select(self, which: Tensor | np.ndarray[Any, Any] | slice | list[int], name: str | None = None) -> Images:
        """The images at the given positions, or where a boolean mask is true, with their columns."""
        index: Any = which if isinstance(which, slice) else torch.as_tensor(np.asarray(which))
        if isinstance(index, Tensor) and not index.numel():
            index = index.long()  # an empty list says nothing of its type
        rows: Any = index if isinstance(index, slice) else index.numpy()
        columns = {k: v[index] if isinstance(v, Tensor) else v[rows] for k, v in self.columns.items()}
        return dataclasses.replace(self, x=self.x[index], y=self.y[index], columns=columns, name=name or self.name)

    def but(self, **changes: Any) -> Images:
        """These images with some fields changed."""
        return dataclasses.replace(self, **changes)

    def with_column(self, name: str, values: Tensor | np.ndarray[Any, Any]) -> Images:
        """These images with one more column."""
        return self.but(columns={**self.columns, name: values})

    def batches(self, size: int, device: str | torch.device = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """In order, batches of float32 channels-last images in [0, 1] and their labels, on `device`."""
        places = [slice(start, start + size) for start in range(0, len(self), size)]
        return read_batches(self.x, self.y, places, torch.device(device))

    def fingerprint(self) -> str:
        """A hash of pixels, labels and class names: 16 hex digits."""
        digest = hashlib.sha256(repr((tuple(self.x.shape), str(self.x.dtype), self.classes)).encode())
        for start in range(0, len(self), 4096):
            digest.update(self.x[start : start + 4096].contiguous().numpy().tobytes())
        digest.update(self.y.numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """A named bundle of splits with the same classes.

    Args:
        name: for reports.
        train: what the model learnt from; ``None`` when the user has only test data.
        test: what the model is judged on.
        val: held out from both; checks that must fit something use it.
        ood: sets that do not belong to the task, by name; their labels mean nothing.
    """

    name: str
    test: Images
    train: Images | None = None
    val: Images | None = None
    ood: Mapping[str, Images] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.test):
            raise UserError(f"{self.name}: the test split is empty.")
        for split in (self.train, self.val):
            if split is None:
                continue
            if split.classes != self.test.classes:
                raise UserError(f"{self.name}: the splits have different classes.")
            if split.shape != self.test.shape:
                raise UserError(f"{self.name}: the splits have different shapes, {split.shape} and {self.test.shape}.")

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in label order."""
        return self.test.classes

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.test.num_classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.test.shape

    def but(self, **changes: Any) -> Data:
        """This bundle with some fields changed."""
        return dataclasses.replace(self, **changes)


def concat(*parts: Images, name: str | None = None) -> Images:
    """The images of several splits of one task, one after the other; columns that all share are kept."""
    first = parts[0]
    for part in parts[1:]:
        if part.classes != first.classes or part.shape != first.shape or part.x.dtype != first.x.dtype:
            raise UserError(f"{first.name} and {part.name} differ in classes, shape or type and cannot be joined.")
    shared = [k for k in first.columns if all(k in part.columns for part in parts)]
    columns = {k: _join([part.columns[k] for part in parts]) for k in shared}
    return first.but(
        x=torch.cat([part.x for part in parts]),
        y=torch.cat([part.y for part in parts]),
        columns=columns,
        name=name or first.name,
    )


def _join(values: list[Any]) -> Any:
    return torch.cat(values) if isinstance(values[0], Tensor) else np.concatenate(values)
