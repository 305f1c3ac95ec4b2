"""Data set objects of other libraries, taken by what they can do rather than by what they are.

Anything with ``len`` and indices, or that can be iterated, serves: PyTorch and torchvision data sets, Hugging Face data
sets, lists of pairs. None of those libraries is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import TensorDataset

from holdfast.data.folders import ALIASES
from holdfast.data.images import Data, Images
from holdfast.data.labels import labels_of
from holdfast.data.layout import nchw
from holdfast.data.pictures import eight_bits, has_colour
from holdfast.data.resize import fitted, recoloured
from holdfast.errors import UserError
from holdfast.run import Run

__all__ = ["from_object"]

_IMAGE_KEYS = ("image", "img", "images", "x", "pixel_values")
_LABEL_KEYS = ("label", "labels", "fine_label", "y", "target", "class")


def from_object(value: Any, *, run: Run) -> Data:
    """Read a data set object, or a mapping of splits such as ``{"train": a, "test": b, "ood": {"noise": c}}``.

    A single data set is the test split. Items are pairs of image and label, or dictionaries with ``image`` or
    ``img`` and ``label``; images are Pillow's, tensors, or arrays. Class names are taken from ``classes`` or
    from the features.

    Raises:
        UserError: the items cannot be read so, or images differ in size.
    """
    if isinstance(value, Data):
        return value
    if isinstance(value, Images):
        return Data(name=value.name, test=value)
    if not isinstance(value, Mapping):
        return Data(name=type(value).__name__, test=_splits({"test": value}, type(value).__name__, run)["test"])
    given = {ALIASES.get(str(name).lower(), str(name).lower()): part for name, part in value.items()}
    strangers = sorted(set(given) - {"train", "val", "test", "ood"})
    if strangers:
        raise UserError(f"data: the split {strangers[0]!r} is unknown. It takes: train, val, test, ood.")
    ood = given.pop("ood", {})
    if "test" not in given and "val" in given:
        given["test"] = given.pop("val")
    if "test" not in given:
        raise UserError("data: a mapping of splits needs 'test' (or 'val').")
    splits = _splits(given, "data", run)
    sets = ood if isinstance(ood, Mapping) else {"ood": ood}
    channels, height, width = splits["test"].shape
    far = {
        str(name): images.but(x=fitted(images.x, (height, width), channels))
        for name, images in ((n, _unlabelled(part, str(n), run)) for n, part in sets.items())
    }
    return Data(name="data", train=splits.get("train"), val=splits.get("val"), test=splits["test"], ood=far)


def _splits(given: Mapping[str, Any], title: str, run: Run) -> dict[str, Images]:
    """The splits with one set of classes and one number of channels."""
    if all(isinstance(part, Images) for part in given.values()):
        return dict(given)
    read = {name: _read(part, f"{title} {name}" if title != name else title, run) for name, part in given.items()}
    names = {_classes(part) for part in given.values()} - {None}
    if len(names) > 1:
        raise UserError(f"{title}: the splits name different classes.")
    labels = labels_of([y for _, y in read.values()], names.pop() if names else None, title)
    channels = max(x.shape[1] for x, _ in read.values())
    splits, start = {}, 0
    for name, (x, _) in read.items():
        y = labels.y[start : start + len(x)]
        start += len(x)
        splits[name] = Images(x=recoloured(x, channels), y=y, classes=labels.classes, name=f"{title} {name}")
    return splits


def _unlabelled(part: Any, title: str, run: Run) -> Images:
    if isinstance(part, Images):
        return part
    x, _ = _read(part, title, run, labelled=False)
    return Images(x=x, y=torch.zeros(len(x), dtype=torch.int64), classes=("unknown",), name=title)


def _read(part: Any, title: str, run: Run, labelled: bool = True) -> tuple[Tensor, np.ndarray[Any, Any]]:
    if isinstance(part, Images):
        return part.x, np.asarray([part.classes[i] for i in part.y.tolist()], dtype=np.str_)
    if isinstance(part, TensorDataset) and len(part.tensors) >= 1 + labelled:
        given = part.tensors[1].cpu().numpy() if labelled else np.zeros(len(part), np.int64)
        return nchw(part.tensors[0].detach().cpu(), title), given
    if not isinstance(part, Iterable) and not hasattr(part, "__getitem__"):
        raise UserError(f"{title}: a data set must be indexable or iterable, got {type(part).__name__}.")
    total = len(part) if hasattr(part, "__len__") else 0
    stack = _Stack(title)
    labels: list[Any] = []
    with run.track(total, f"reading {title}") as ticker:
        for place, item in enumerate(_items(part)):
            image, label = _pair(item, place, title, labelled)
            stack.add(image, place)
            labels.append(label)
            ticker.advance()
    if not labels:
        raise UserError(f"{title}: the data set is empty.")
    return stack.joined(), np.asarray(labels)


def _items(part: Any) -> Iterator[Any]:
    # Map-style data sets may lack __iter__, and Python's own protocol then stops only at IndexError.
    if hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        return (part[i] for i in range(len(part)))
    return iter(part)


def _pair(item: Any, place: int, title: str, labelled: bool) -> tuple[Any, Any]:
    label: Any = 0
    if isinstance(item, Mapping):
        image = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        label = next((item[key] for key in _LABEL_KEYS if key in item), None if labelled else 0)
    elif isinstance(item, tuple | list) and len(item) >= 2:
        image, label = item[0], item[1]
    else:
        image, label = (None, None) if labelled else (item, 0)
    if image is None or label is None:
        keys = f"a dictionary of {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
        raise UserError(
            f"{title}: items must be pairs (image, label) or have 'image' and 'label', got {keys} at {place}."
        )
    if isinstance(label, Tensor | np.ndarray | np.generic):
        if np.size(label) != 1:
            raise UserError(f"{title}: item {place} must have one label, got one of shape {tuple(np.shape(label))}.")
        label = label.item()
    return image, label if labelled else 0


class _Stack:
    """Collects images of one size; turns grey ones to colour when colour comes along."""

    def __init__(self, title: str):
        self.title = title
        self.images: list[Tensor] = []

    def add(self, image: Any, place: int) -> None:
        title = f"{self.title}, item {place}"
        if isinstance(image, Image.Image):
            picture = eight_bits(ImageOps.exif_transpose(image), title)
            picture = picture.convert("RGBA") if picture.mode == "P" else picture
            image = np.array(picture.convert("RGB" if has_colour(image) else "L"))
        if not isinstance(image, Tensor | np.ndarray):
            raise UserError(
                f"{title}: an image must be a Pillow image, a tensor or an array, got {type(image).__name__}."
            )
        x = nchw(image.detach().cpu()[None] if isinstance(image, Tensor) else image[None], title)[0]
        first = self.images[0] if self.images else x
        if x.shape[1:] != first.shape[1:]:
            h, w = x.shape[1:]
            raise UserError(
                f"{title} is {h}x{w} (height x width), those before it {first.shape[1]}x{first.shape[2]}; resize the "
                "images in the data set's transform."
            )
        if x.dtype != first.dtype:
            raise UserError(f"{title} is of type {x.dtype}, those before it of {first.dtype}.")
        self.images.append(x)

    def joined(self) -> Tensor:
        channels = max(len(x) for x in self.images)
        return torch.stack([x.expand(channels, -1, -1) for x in self.images])


def _classes(part: Any) -> tuple[str, ...] | None:
    """The class names that a data set, or the one it is a part of, knows."""
    for _ in range(10):
        classes = getattr(part, "classes", None)
        if isinstance(classes, list | tuple) and classes:
            return tuple(map(str, classes))
        features = getattr(part, "features", None)
        if isinstance(features, Mapping):
            for key in _LABEL_KEYS:
                names = getattr(features.get(key), "names", None)
                if names:
                    return tuple(map(str, names))
        part = getattr(part, "dataset", None)
        if part is None:
            return None
    return None
