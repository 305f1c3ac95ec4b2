"""Adversarial images as an incident leaves them: arrays in a file, a folder of pictures, or the folder of an attack.

Pixels are taken as they are: a picture that is cropped or resized holds no trace of an attack any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from holdfast.data.images import Images
from holdfast.data.layout import nchw
from holdfast.data.pictures import SUFFIXES, Encoded, decode, survey
from holdfast.errors import UserError
from holdfast.models import read_weights
from holdfast.run import Ticker

__all__ = ["read_evidence", "read_images"]

_ATTACKED, _SAMPLES = "adversarial.safetensors", "samples.parquet"
_NAMES = ("x_adv", "x")  # of arrays, the first that is there


def read_evidence(path: Path, *, clean: Path | None = None, test: Images | None = None) -> tuple[Tensor, Tensor | None]:
    """Attacked images, and the clean ones where there are any.

    Args:
        path: see `read_images`; or a folder written by ``holdfast attack --out``, of which the images count that
            fooled the model, and whose clean images are those of `test`.
        clean: the clean images, in the same order; pictures are matched by their names.
        test: the split that was attacked.

    Raises:
        UserError: something is missing or cannot be read, the two do not belong together, or no image is left.
    """
    campaign = path.is_dir() and (path / _ATTACKED).is_file()
    x_adv = read_images(path / _ATTACKED if campaign else path)
    if clean is not None:
        if path.is_dir() and not campaign and clean.is_dir() and _stems(path) != _stems(clean):
            raise UserError(f"{clean}: there must be a clean picture of the same name for each of {path}.")
        before = read_images(clean)
        if before.shape != x_adv.shape:
            raise UserError(f"{clean}: clean images must be like the attacked, {_size(x_adv)}, got {_size(before)}.")
        return x_adv, before
    if not campaign:
        return x_adv, None
    rows = _successes(path / _SAMPLES, len(x_adv))
    if not len(rows):
        raise UserError(f"{path}: the attack fooled the model on no image, so that there is nothing to parse.")
    if test is None:
        return x_adv[list(rows)], None
    places = torch.tensor(list(rows.values()))
    if int(places.max()) >= len(test) or tuple(test.shape) != tuple(x_adv.shape[1:]):
        raise UserError(f"{path}: these images were not made of {test.name}; give the data that was attacked.")
    return x_adv[list(rows)], test.x[places]


def read_images(path: Path) -> Tensor:
    """Images (N, C, H, W) from ``.npz`` or ``.safetensors`` (``x_adv`` or ``x``), ``.npy``, or a folder of pictures.

    Raises:
        UserError: there is no such file or folder, it cannot be read, or it does not hold images of one size.
    """
    if path.is_dir():
        return _pictures(path)
    if path.suffix == ".safetensors":
        arrays: Any = read_weights(path).tensors
    elif path.suffix in (".npz", ".npy"):
        try:
            arrays = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read as NumPy arrays: {str(error).rstrip('.')}.") from None
        arrays = {"x": arrays} if path.suffix == ".npy" else arrays
    elif path.exists():
        raise UserError(f"{path}: images are read from .npz, .npy, .safetensors, or a folder of pictures.")
    else:
        raise UserError(f"{path}: no such file or folder.")
    found = next((name for name in _NAMES if name in arrays), None)
    if found is None:
        raise UserError(f"{path}: there is no array x_adv or x; it holds {', '.join(arrays) or 'none'}.")
    return nchw(arrays[found], f"{path}, {found}")


@dataclass(frozen=True)
class _Pictures:
    """The pictures right in a folder, in the order of their names."""

    title: str
    paths: tuple[Path, ...]

    @property
    def identity(self) -> str:
        return self.title

    @property
    def state(self) -> str:
        return ""  # they are not cached

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Any:
        return (Encoded(place, str(path), path) for place, path in enumerate(self.paths))


def _pictures(folder: Path) -> Tensor:
    paths = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES))
    if not paths:
        raise UserError(f"{folder} holds no pictures.")
    source = _Pictures(str(folder), paths)
    found = survey(source)
    if len(found.sizes) > 1:
        raise UserError(f"{folder}: pictures must be of one size, as the model saw them, got {len(found.sizes)} sizes.")
    pixels = np.empty((len(paths), 3 if found.colour else 1, *next(iter(found.sizes))), dtype=np.uint8)
    decode(source, pixels, Ticker())
    return torch.from_numpy(pixels)


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _successes(path: Path, count: int) -> dict[int, int]:
    """Of the images that the model had right and was fooled on: the row, and the place in the split."""
    try:
        table = pq.read_table(path, columns=["index", "correct", "success"]).to_pydict()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it says which of the images fooled the model.") from None
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"{path} cannot be read: {str(error).rstrip('.')}.") from None
    if len(table["index"]) != count:
        raise UserError(f"{path} is about {len(table['index'])} images, but there are {count} beside it.")
    rows = zip(table["index"], table["correct"], table["success"], strict=True)
    return {row: int(place) for row, (place, correct, success) in enumerate(rows) if correct and success}


def _size(x: Tensor) -> str:
    return f"{len(x)} of shape {tuple(x.shape[1:])}"
