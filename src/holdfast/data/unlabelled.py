"""Images whose classes nobody knows, as a model in use meets them: pictures, arrays, or a split of a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from holdfast.data.folders import pictures_below, read_pictures
from holdfast.data.images import Images
from holdfast.data.layout import nchw
from holdfast.data.load import SOURCES, load_data
from holdfast.errors import UserError, one_of
from holdfast.run import Run

__all__ = ["read_unlabelled"]


def read_unlabelled(
    spec: str,
    *,
    shape: tuple[int, int, int],
    split: str = "test",
    run: Run = Run(),  # noqa: B008 - immutable
) -> Images:
    """Images to be asked about.

    Args:
        spec: a picture; a folder, of which all pictures count, however deep (cropped and resized to `shape`); a
            ``.npy`` file, or a ``.npz`` file without labels, whose array is ``x``; or else anything that `load_data`
            takes.
        shape: channels, height and width that the model takes.
        split: of a data set: ``test``, ``train``, ``val``, or the name of one of its sets of unknown images.
        run: for its progress bar.

    Raises:
        UserError: there is nothing, it cannot be read, or it has another shape.
    """
    path = Path(spec)
    if spec not in SOURCES and path.exists():
        paths = pictures_below(path)
        if paths:
            return read_pictures(paths, title=spec, shape=shape, run=run)
        if path.suffix in (".npy", ".npz"):
            x = _array(path)
            if x is not None:
                y = torch.zeros(len(x), dtype=torch.int64)
                return _fitting(Images(x=x, y=y, classes=("unknown",), name=spec), shape)
    data = load_data(spec, run=run)
    splits = {"test": data.test, "train": data.train, "val": data.val, **data.ood}
    there = {name: images for name, images in splits.items() if images is not None}
    if split not in there:
        raise one_of(f"split of {data.name}", split, there)
    return _fitting(there[split], shape)


def _array(path: Path) -> Tensor | None:
    """The array of images in a file; ``None`` where it comes with labels, or is split, and so is a data set."""
    try:
        content = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return nchw(content, str(path))
        with content:
            return nchw(content["x"], f"{path}, x") if "x" in content and "y" not in content else None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as NumPy arrays: {str(error).rstrip('.')}.") from None


def _fitting(images: Images, shape: tuple[int, int, int]) -> Images:
    if images.shape != shape:
        got, wanted = ("x".join(map(str, size)) for size in (images.shape, shape))
        raise UserError(f"{images.name}: the model takes images of shape {wanted}, got {got}.")
    return images
