"""Hashes that say whether a model or a bundle of data is the one that was audited before."""

from __future__ import annotations

import hashlib
import inspect

import numpy as np
from torch import nn

from holdfast.audit.groups import COLUMNS
from holdfast.data import Data
from holdfast.models.weights import weights_hash

__all__ = ["data_fingerprint", "model_fingerprint"]


def model_fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights, its structure, and the source of the classes that are the user's own."""
    digest = hashlib.sha256(f"{weights_hash(model)}\0{model!r}".encode())
    kinds = {f"{type(m).__module__}.{type(m).__qualname__}": type(m) for m in model.modules()}
    for name, kind in sorted(kinds.items()):
        if name.partition(".")[0] in ("torch", "holdfast"):
            continue
        try:
            source = inspect.getsource(kind)
        except (OSError, TypeError):  # classes made at run time have no source to show
            source = ""
        digest.update(f"{name}\0{source}\0".encode())
    return digest.hexdigest()[:16]


def data_fingerprint(data: Data) -> str:
    """A hash of all splits, their labels and class names, and the columns that checks read."""
    digest = hashlib.sha256()
    splits = {"test": data.test, "train": data.train, "val": data.val, **{f"ood {k}": v for k, v in data.ood.items()}}
    for name, images in sorted(splits.items()):
        if images is None:
            continue
        digest.update(f"{name}\0{images.fingerprint()}\0".encode())
        for column in COLUMNS:
            if column in images.columns:
                digest.update(f"{column}\0{list(map(str, np.asarray(images.columns[column])))}".encode())
    return digest.hexdigest()[:16]
