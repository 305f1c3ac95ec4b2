"""``.npz`` files: arrays ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test`` and so on.

Large arrays are copied out of the file once and mapped into memory from the cache.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.data.decoded import mapped, stat_state
from holdfast.data.folders import ALIASES
from holdfast.data.images import Data, Images
from holdfast.data.labels import labels_of
from holdfast.data.layout import nchw
from holdfast.data.resize import fitted
from holdfast.data.splits import FRACTIONS, split
from holdfast.errors import UserError
from holdfast.run import Run

__all__ = ["read_npz"]

# Arrays above this many bytes are mapped rather than read.
_LARGE = 2**30

_DAMAGE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


def read_npz(
    path: Path, *, title: str, size: tuple[int, int] | None = None, channels: int | None = None, large: int = _LARGE
) -> Data:
    """Read a NumPy archive.

    The arrays are ``x`` and ``y``, shared out among train, val and test by class and always in the same way; or
    ``x_test`` and ``y_test``, with ``x_train``, ``x_val`` and their labels where there are any. ``x_ood`` or
    ``x_ood_NAME`` are sets that belong to no class. ``classes`` names the classes. Any other array with a value for
    each image (``group``, or ``group_test`` beside ``x_test``) becomes a column.

    Raises:
        UserError: the file is no such archive, holds Python objects (which are never loaded), or the arrays do not fit.
    """
    arrays = _Arrays(path, title, large)
    classes = None
    if "classes" in arrays.names:
        classes = tuple(str(name) for name in arrays.read("classes").reshape(-1).tolist())
    suffixes = [
        name[1:] for name in arrays.names if name == "x" or (name.startswith("x_") and name[2:].lower() in ALIASES)
    ]
    if not suffixes:
        raise UserError(
            f"{title}: there are neither arrays x and y nor x_test and y_test; it holds "
            f"{', '.join(arrays.names) or 'none'}."
        )
    for suffix in suffixes:
        if f"y{suffix}" not in arrays.names:
            raise UserError(f"{title}: the labels y{suffix} of x{suffix} are missing.")
    values = [arrays.read(f"y{suffix}") for suffix in suffixes]
    found = labels_of(values, classes, title)
    parts, start = {}, 0
    for suffix, value in zip(suffixes, values, strict=True):
        x = fitted(nchw(arrays.pixels(f"x{suffix}"), f"{title}, x{suffix}"), size, channels)
        y = found.y[start : start + len(value)]
        start += len(value)
        name = ALIASES[suffix[1:].lower()] if suffix else "all"
        columns = arrays.columns(suffix, len(x))
        parts[name] = Images(x=x, y=y, classes=found.classes, columns=columns, name=f"{path.stem} {name}")
    if "all" in parts:
        if len(parts) > 1:
            raise UserError(f"{title}: it holds both x and x{next(s for s in suffixes if s)}; keep one or the other.")
        parts = split(parts["all"].but(name=path.stem), FRACTIONS, Run(scope=("npz",)))
    elif "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    elif "test" not in parts:
        raise UserError(f"{title}: there is x_train but neither x_test nor x_val, so nothing to judge a model on.")
    test = parts["test"]
    ood = {}
    for name in arrays.names:
        if name == "x_ood" or name.startswith("x_ood_"):
            x = fitted(nchw(arrays.pixels(name), f"{title}, {name}"), test.shape[1:], test.shape[0])
            label = name.removeprefix("x_ood").strip("_") or "ood"
            ood[label] = Images(x=x, y=torch.zeros(len(x), dtype=torch.int64), classes=("unknown",), name=label)
    return Data(name=path.stem, train=parts.get("train"), val=parts.get("val"), test=test, ood=ood)


class _Arrays:
    """The arrays of a file, read by name without ever unpickling."""

    def __init__(self, path: Path, title: str, large: int):
        self.path, self.title, self.large = path, title, large
        try:
            with zipfile.ZipFile(path) as archive:
                members = {info.filename: info.file_size for info in archive.infolist()}
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{title} cannot be read as a NumPy archive: {str(error).rstrip('.')}.") from None
        self.sizes = {name.removesuffix(".npy"): size for name, size in members.items() if name.endswith(".npy")}

    @property
    def names(self) -> list[str]:
        return list(self.sizes)

    def read(self, name: str) -> np.ndarray[Any, Any]:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                return np.asarray(archive[name])
        except _DAMAGE as error:
            if "pickle" in str(error).lower():
                raise UserError(
                    f"{self.title}: the array {name!r} holds Python objects, which are not loaded since they can run "
                    "code; save it as plain numbers or text."
                ) from None
            raise self.damaged(name, error) from None

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of an array, without reading it."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as stored:
                first = np.lib.format.read_magic(stored) == (1, 0)
                read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(stored)
                return shape, dtype
        except _DAMAGE as error:
            raise self.damaged(name, error) from None

    def damaged(self, name: str, error: Exception) -> UserError:
        return UserError(f"{self.title}: the array {name!r} is damaged: {str(error).rstrip('.')}.")

    def pixels(self, name: str) -> np.ndarray[Any, Any] | Tensor:
        """An array of images: read when small, else copied out once and mapped."""
        if self.sizes[name] <= self.large or self.header(name)[1].hasobject:
            return self.read(name)

        def fill(target: Path) -> None:
            with (
                zipfile.ZipFile(self.path) as archive,
                archive.open(f"{name}.npy") as stored,
                open(target, "wb") as out,
            ):
                try:
                    shutil.copyfileobj(stored, out, 2**22)
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise self.damaged(name, error) from None

        return mapped(f"{self.path.resolve()}|{name}", stat_state([self.path]), fill, lambda array: array.ndim >= 3)

    def columns(self, suffix: str, count: int) -> Mapping[str, Tensor | np.ndarray[Any, Any]]:
        """The further arrays of plain values with one for each image of the split."""
        columns: dict[str, Tensor | np.ndarray[Any, Any]] = {}
        for name in self.names:
            stem = name.removesuffix(suffix)
            if not name.endswith(suffix) or stem == "classes" or name.startswith(("x_", "y_")) or stem in ("x", "y"):
                continue
            shape, dtype = self.header(name)
            if shape and shape[0] == count and dtype.kind in "biufU":
                values = self.read(name)
                columns[stem] = values if dtype.kind == "U" else torch.from_numpy(values)
        return columns
