"""Decoded images on disk, mapped into memory: the first load decodes, every later one opens a file.

An entry is one ``.npy`` file of bytes (N, C, H, W). Its name says where the pictures came from and in which state they
were, so an edited source is decoded anew and its stale entry removed. Pages are read when touched and may be dropped
when memory is short: sets larger than memory work the same way.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from holdfast import files
from holdfast.data.pictures import PictureSource, decode, survey
from holdfast.errors import UserError
from holdfast.run import Run

__all__ = ["decoded_images", "mapped", "stat_state"]

_VERSION = 1


def decoded_images(
    source: PictureSource, *, size: tuple[int, int] | None, channels: int | None, run: Run
) -> UInt8[Tensor, "n c h w"]:
    """The pictures of `source`, decoded once and mapped from the cache.

    Args:
        source: the encoded pictures, in the order wanted.
        size: height and width to crop and resize to; ``None`` demands that all pictures share one.
        channels: 1 or 3; ``None`` takes 1 when no picture has colour.
        run: for its progress bar.

    Raises:
        UserError: a picture cannot be read, sizes differ and none was named, or the cache cannot be written.
    """

    def fill(path: Path) -> None:
        found = survey(source)
        height, width = size or found.one_size(source.title)
        shape = (len(source), channels or (3 if found.colour else 1), height, width)
        pixels = _allocate(path, shape)
        with run.track(len(source), f"decoding {Path(source.title).name}") as ticker:
            decode(source, pixels, ticker)
        pixels.flush()

    def fits(array: np.ndarray[Any, Any]) -> bool:
        return array.dtype == np.uint8 and array.ndim == 4 and len(array) == len(source)

    return mapped(f"{source.identity}|{size}|{channels}", source.state, fill, fits)


def mapped(what: str, state: str, fill: Callable[[Path], None], fits: Callable[[np.ndarray[Any, Any]], bool]) -> Tensor:
    """The cached array `what` in the given state, as a tensor over the mapped file; filled when missing or damaged.

    Args:
        what: identifies the entry; entries of the same `what` in another state are removed.
        state: of its source.
        fill: writes the array, in ``.npy`` format, to the path it is given.
        fits: whether an array found can be the entry.

    Raises:
        UserError: the cache cannot be written.
    """
    try:
        folder = files.cache_dir("decoded")
    except UserError as error:
        raise _no_cache(error) from None
    prefix = _digest(what, 16)
    path = folder / f"{prefix}-{_digest(state, 16)}.npy"
    array = _open(path, fits)
    if array is None:
        try:
            with files.atomic_path(path) as temporary:
                fill(temporary)
        except UserError as error:
            raise (_no_cache(error) if "cannot be written" in str(error) else error) from None
        for stale in folder.glob(f"{prefix}-*.npy"):
            if stale != path:
                stale.unlink(missing_ok=True)
        array = _open(path, fits)
        if array is None:
            raise AssertionError(f"{path} was written but does not fit")
    return torch.from_numpy(array)


def stat_state(paths: list[Path]) -> str:
    """A hash of the names, sizes and modification times of files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        stat = os.stat(path)
        digest.update(f"{path}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}\x1e".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _open(path: Path, fits: Callable[[np.ndarray[Any, Any]], bool]) -> np.ndarray[Any, Any] | None:
    """The array at `path`, or None when it is missing, cut short, or not what is expected."""
    if not path.is_file():
        return None
    try:
        # "c" keeps writes to the tensor private: nobody can spoil the cache by an in-place operation.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        return array if fits(array) and path.stat().st_size == array.offset + array.nbytes else None
    except (ValueError, OSError, EOFError):
        return None


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A mapped uint8 array whose disk space is taken at once: a full disk is an error now, not a crash later."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # macOS lacks it
        with open(path, "rb+") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems cannot
                    raise
    return array


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(f"{_VERSION}|{text}".encode("utf-8", "surrogateescape")).hexdigest()[:digits]


def _no_cache(error: UserError) -> UserError:
    return UserError(f"{str(error).rstrip('.')}. Set HOLDFAST_CACHE to a folder for decoded images.")
