"""`load_data`: a name, a path or an object to `Data`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from holdfast import specs
from holdfast.data.cifar import Cifar10, Cifar100
from holdfast.data.digits import Digits
from holdfast.data.images import Data
from holdfast.data.objects import from_object
from holdfast.data.paths import Folder, read_path
from holdfast.data.shapes32 import Shapes32
from holdfast.data.source import Source
from holdfast.errors import UserError, one_of
from holdfast.run import Run

__all__ = ["SOURCES", "load_data"]

SOURCES: dict[str, type[Source]] = {source.id: source for source in (Digits, Shapes32, Cifar10, Cifar100, Folder)}

_CALL = re.compile(r"\s*([A-Za-z_][\w-]*)\s*\(.*\)\s*", re.DOTALL)
_FIRST_STRING = re.compile(r"(\s*folder\s*\(\s*)(?=[\"'])")


def load_data(spec: str | os.PathLike[str] | Any, *, run: Run = Run()) -> Data:  # noqa: B008 - immutable
    """Load a data set.

    Args:
        spec: one of

            - a name with settings: ``digits``, ``cifar10``, ``cifar100``, ``shapes32(n=2000, seed=3)``;
            - a path: a folder with a folder per class, or with ``train``, ``test``, ``val`` and ``ood``; an archive of
              such a folder; a ``.npz`` or ``.parquet`` file. ``folder("pets", size=[48, 40], channels=3)`` says how to
              read pictures. Names come first: a folder called ``digits`` is ``./digits``;
            - an object: `Data`, `Images`, a PyTorch, torchvision or Hugging Face data set (taken as the test split), or
              a mapping ``{"train": ..., "test": ..., "ood": {...}}`` of such.
        run: for its progress bar. What is loaded does not depend on it.

    Raises:
        UserError: there is no such data set, or it cannot be read.
    """
    if isinstance(spec, os.PathLike):
        return read_path(Path(spec), run=run)
    if not isinstance(spec, str):
        return from_object(spec, run=run)
    text = spec.strip()
    if not text:
        raise UserError(f"data: a name or a path is needed; the names are {', '.join(SOURCES)}.")
    call = _CALL.fullmatch(text)
    if text in SOURCES or (call and call.group(1) in SOURCES):
        parsed = specs.parse(_FIRST_STRING.sub(r"\1path=", text, count=1))
        if parsed.id == "folder" and "path" not in parsed.fields:
            raise UserError('folder: the path is missing; write for example folder("pets", size=[48, 40]).')
        return SOURCES[parsed.id].build(parsed.fields)(run=run)
    if _exists(text) or _looks_like_path(text):
        return read_path(text, run=run)
    name = call.group(1) if call else text
    raise UserError(f"{one_of('data set', name, SOURCES)} Or give a path to a folder, an archive, a .npz or .parquet.")


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError):
        return False


def _looks_like_path(text: str) -> bool:
    return "/" in text or text.startswith((".", "~")) or bool(re.search(r"\.\w{2,8}$", text))
