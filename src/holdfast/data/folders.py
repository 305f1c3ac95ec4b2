"""Folders of pictures: a folder per class, or splits of such folders, or splits of parquet tables.

pets/cat/a.png, pets/dog/b.png                         one set, shared out among train, val and test
pets/train/cat/a.png, pets/test/cat/c.png              splits; also val/ and ood/
pets/ood/d.png, or pets/ood/birds/e.png                pictures that belong to no class, in one or several sets
pets/train.parquet, pets/test-00000-of-00001.parquet   splits as tables, see `holdfast.data.parquet`
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from holdfast.data.decoded import decoded_images, stat_state
from holdfast.data.images import Data, Images
from holdfast.data.parquet import read_parquet
from holdfast.data.pictures import SUFFIXES, Encoded
from holdfast.data.splits import FRACTIONS, split_indices
from holdfast.errors import UserError
from holdfast.run import Run

__all__ = ["ALIASES", "pictures_below", "read_folder", "read_pictures"]

# Names under which people keep a split.
ALIASES: Mapping[str, str] = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
}  # fmt: skip
_OOD = "ood"

T = TypeVar("T")


def read_folder(
    root: Path, *, title: str, size: tuple[int, int] | None = None, channels: int | None = None, run: Run
) -> Data:
    """Read a folder laid out in one of the ways the module shows.

    Classes are the sorted folder names; pictures may lie deeper inside a class folder. Hidden files, and files that are
    no pictures by their name, are passed over. A set without splits is shared out by class, always in the same way. A
    set with ``val`` but no ``test`` is judged on ``val``. Pictures of all splits become grey only when none has colour.
    The column ``path`` keeps where each picture came from.

    Args:
        root: the folder.
        title: what messages call it.
        size: height and width to crop and resize to; by default all pictures must share one.
        channels: 1 or 3.
        run: for its progress bar.

    Raises:
        UserError: the layout cannot be recognised, a class folder is empty, or a picture cannot be read.
    """
    tables = _tables(root)
    if tables:
        splits = read_parquet(tables, title=title, size=size, channels=channels, run=run)
        parts = _judged(splits, title)
    else:
        parts = _read_pictures(root, title, size, channels, run)
    test = parts["test"]
    ood = _read_ood(root, title, test.shape, run)
    return Data(name=_clean(root.name), train=parts.get("train"), val=parts.get("val"), test=test, ood=ood)


def pictures_below(folder: Path) -> list[Path]:
    """All pictures inside a folder, however deep, in a fixed order; links are followed, but not in circles.

    A picture is below itself.
    """
    if folder.is_file() and _is_picture(folder):
        return [folder]
    found: list[Path] = []
    seen: set[str] = set()
    for current, names, filenames in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(n for n in names if not _is_hidden(n))
        found += [p for n in sorted(filenames) if _is_picture(p := Path(current, n))]
    return found


def read_pictures(paths: list[Path], *, title: str, shape: tuple[int, int, int], run: Run) -> Images:
    """Pictures of no known class, brought to a shape, since a model takes no other; the column ``path`` says which.

    Raises:
        UserError: one of them cannot be read.
    """
    channels, height, width = shape
    source = _Files(title, "|".join(str(path.resolve()) for path in paths), tuple(paths))
    x = decoded_images(source, size=(height, width), channels=channels, run=run)
    columns = {"path": np.asarray([_clean(str(path)) for path in paths], dtype=np.str_)}
    return Images(x=x, y=torch.zeros(len(x), dtype=torch.int64), classes=("unknown",), columns=columns, name=title)


def _read_pictures(
    root: Path, title: str, size: tuple[int, int] | None, channels: int | None, run: Run
) -> dict[str, Images]:
    folders = _split_folders(root)
    if folders:
        listed = {name: _by_class(folder, root, title) for name, folder in _judged(folders, title).items()}
    else:
        listed = {"all": _by_class(root, root, title, besides=_OOD)}
    classes = _classes(listed, title)
    place = {name: i for i, name in enumerate(classes)}
    paths = {s: [p for name in sorted(by) for p in by[name]] for s, by in listed.items()}
    y = {s: torch.tensor([place[n] for n in sorted(by) for _ in by[n]], dtype=torch.int64) for s, by in listed.items()}
    if not folders:
        everything, labels = paths["all"], y["all"]
        chosen = split_indices(labels, FRACTIONS, Run(scope=("folder",)), title)
        paths = {s: [everything[i] for i in index.tolist()] for s, index in chosen.items()}
        y = {s: labels[index] for s, index in chosen.items()}
    # One array for all splits: they share size and channels, and each split is a view of it.
    source = _Files(title, str(root.resolve()), tuple(p for part in paths.values() for p in part))
    x = decoded_images(source, size=size, channels=channels, run=run)
    splits, start = {}, 0
    for s, part in paths.items():
        stop = start + len(part)
        splits[s] = Images(
            x=x[start:stop],
            y=y[s],
            classes=classes,
            columns={"path": np.asarray([_clean(str(p.relative_to(root))) for p in part], dtype=np.str_)},
            name=f"{_clean(root.name)} {s}",
        )
        start = stop
    return splits


def _read_ood(root: Path, title: str, shape: tuple[int, int, int], run: Run) -> dict[str, Images]:
    """The sets under ``ood/``, brought to the shape of the test images, since a model takes no other."""
    folder = root / _OOD
    if not folder.is_dir():
        return {}
    found: dict[str, list[Path]] = {_OOD: [p for p in _entries(folder) if p.is_file() and _is_picture(p)]}
    found |= {_clean(p.name): pictures_below(p) for p in _entries(folder) if p.is_dir()}
    channels, height, width = shape
    sets = {}
    for name, paths in found.items():
        if not paths and name != _OOD:
            raise UserError(f"{title}: the folder ood/{name} holds no images.")
        if paths:
            source = _Files(f"{title}/ood/{name}", f"{root.resolve()}|ood|{name}", tuple(paths))
            x = decoded_images(source, size=(height, width), channels=channels, run=run)
            sets[name] = Images(x=x, y=torch.zeros(len(x), dtype=torch.int64), classes=("unknown",), name=name)
    return sets


def _judged(splits: dict[str, T], title: str) -> dict[str, T]:
    """Make sure that there is a test split; ``val`` stands in for it."""
    if "test" in splits:
        return splits
    if "val" in splits:
        return {("test" if name == "val" else name): part for name, part in splits.items()}
    raise UserError(f"{title}: there is train but neither test nor val, so nothing to judge a model on.")


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders that are splits, or none when the subfolders are classes."""
    inside = [p for p in _entries(root) if p.is_dir() and p.name.lower() != _OOD]
    splits = {ALIASES[p.name.lower()]: p for p in inside if p.name.lower() in ALIASES}
    nested = any(child.is_dir() for p in splits.values() for child in _entries(p))
    # Somebody may well classify trains: then other classes stand beside, or pictures lie directly inside.
    return splits if splits and len(splits) == len(inside) and nested else {}


def _tables(root: Path) -> dict[str, list[Path]]:
    """The parquet files of each split: ``train.parquet``, or shards such as ``train-00000-of-00002.parquet``."""
    tables: dict[str, list[Path]] = {}
    for path in [*_entries(root), *_entries(root / "data")]:
        if path.suffix.lower() == ".parquet" and path.is_file():
            stem = path.stem.lower().split("-")[0]
            if stem in ALIASES:
                tables.setdefault(ALIASES[stem], []).append(path)
    return tables


def _by_class(folder: Path, root: Path, title: str, besides: str | None = None) -> dict[str, list[Path]]:
    where = title if folder == root else f"{title}/{folder.name}"
    entries = _entries(folder)
    found = {_clean(p.name): pictures_below(p) for p in entries if p.is_dir() and p.name.lower() != besides}
    loose = [p.name for p in entries if p.is_file() and _is_picture(p)]
    if not found:
        what = f"images ({loose[0]}, ...) but no class folders" if loose else "neither images nor class folders"
        raise UserError(f"{where} holds {what}; put the images of each class into a folder of its own, named after it.")
    if loose:
        raise UserError(f"{where}: the image {loose[0]} lies beside the class folders; move it into one of them.")
    return found


def _classes(listed: dict[str, dict[str, list[Path]]], title: str) -> tuple[str, ...]:
    """The class names, which the training folder decides where there is one."""
    first = "train" if "train" in listed else next(iter(listed))
    classes = tuple(sorted(listed[first]))
    for name, by_class in listed.items():
        strangers = sorted(set(by_class) - set(classes))
        if strangers:
            raise UserError(f"{title}: the class {strangers[0]!r} is in {name}/ but not in {first}/.")
        if not any(by_class.values()):
            raise UserError(f"{title}: {name}/ holds no images ({', '.join(sorted(SUFFIXES))}).")
    for name in classes:
        if not any(by_class.get(name) for by_class in listed.values()):
            raise UserError(f"{title}: the class folder {name!r} holds no images; fill it or remove it.")
    if len(classes) < 2:
        raise UserError(f"{title}: a classifier needs at least 2 class folders, got only {classes[0]!r}.")
    return classes


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        return sorted(p for p in folder.iterdir() if not _is_hidden(p.name))
    except PermissionError:
        raise UserError(f"{folder} cannot be read: permission is denied.") from None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not _is_hidden(path.name)


def _clean(name: str) -> str:
    """A name as proper Unicode: one form for accents, and no bytes that cannot be written to a report."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


@dataclass(frozen=True)
class _Files:
    """Picture files in a fixed order."""

    title: str
    identity: str
    paths: tuple[Path, ...]

    @property
    def state(self) -> str:
        return stat_state(list(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Encoded]:
        for position, path in enumerate(self.paths):
            yield Encoded(position, _clean(str(path)), path)
