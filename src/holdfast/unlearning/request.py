"""What is to be forgotten, in words: the images of a file, of a class, of a group, or those that a search finds."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from holdfast import catalog, specs
from holdfast.data import Images
from holdfast.errors import UserError, did_you_mean
from holdfast.run import Run
from holdfast.unlearning.worst_case_forget import WorstCaseForget

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["forget_mask"]

_FILES = (".csv", ".txt")


def forget_mask(
    spec: str, images: Images, *, model: nn.Module | None = None, run: Run | None = None
) -> Bool[Tensor, " n"]:
    """Which of the training images a request names, bool (N,).

    Args:
        spec: a ``.csv`` or ``.txt`` file of positions in the training set, counted from 0, one on a line or in a column
            ``index``; ``class=NAME`` (or its number; several with commas); ``COLUMN=VALUE``; ``random=0.1``, a share;
            or ``worst-case-forget(...)``, which needs the model.
        images: the training images.
        model, run: for requests that are searched for or drawn.

    Raises:
        UserError: it names nothing, everything, or something that is not there.
    """
    run = run or Run()
    name, equals, value = spec.partition("=")
    if spec.lower().endswith(_FILES):
        mask = _at(_positions(Path(spec)), len(images), spec)
    elif spec.partition("(")[0] == WorstCaseForget.id:
        if model is None:
            raise UserError(f"forget: {WorstCaseForget.id} needs the model.")
        search = catalog.build(specs.parse(spec), kind=WorstCaseForget)
        mask = _at(search(model, images, run=run).indices.tolist(), len(images), spec)
    elif not equals:
        raise UserError(
            f"forget: {spec!r} is no request; give a .csv file of indices, class=NAME, COLUMN=VALUE, random=SHARE, or "
            f"{WorstCaseForget.id}."
        )
    elif name == "class":
        mask = torch.isin(images.y, torch.tensor([_class(part, images) for part in value.split(",")]))
    elif name == "random":
        mask = _random(value, images, run)
    else:
        mask = _rows(name, value, images)
    count = int(mask.sum())
    if not count:
        raise UserError(f"forget: no training image of {images.name} is named by {spec!r}.")
    if count == len(images):
        raise UserError(f"forget: {spec!r} names all {count} training images; to forget everything, start a new model.")
    return mask


def _positions(path: Path) -> list[int]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"forget: {path} cannot be read: {reason}.") from None
    rows = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    column = 0
    if rows and not _is_number(rows[0][0]):
        head = [cell.strip().lower() for cell in rows[0]]
        if "index" not in head:
            raise UserError(f"forget: {path} needs a column 'index', it has: {', '.join(head)}.")
        column, rows = head.index("index"), rows[1:]
    found = []
    for line, row in enumerate(rows, 1):
        if column >= len(row) or not _is_number(row[column]):
            cell = row[column] if column < len(row) else ""
            raise UserError(f"forget: entry {line} of {path} is {cell.strip()!r}, which is no whole number.")
        found.append(int(row[column]))
    return found


def _is_number(text: str) -> bool:
    return text.strip().lstrip("-").isdecimal()


def _at(positions: Sequence[int], count: int, name: str) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    wrong = [position for position in positions if not 0 <= position < count]
    if wrong:
        raise UserError(f"forget: {name} names image {wrong[0]}, but the training images are 0 to {count - 1}.")
    mask[list(positions)] = True
    return mask


def _class(name: str, images: Images) -> int:
    name = name.strip()
    if name in images.classes:
        return images.classes.index(name)
    if name.isdecimal() and int(name) < images.num_classes:
        return int(name)
    hint = did_you_mean(name, images.classes) or f" There are: {', '.join(images.classes[:20])}."
    raise UserError(f"forget: {name!r} is no class of {images.name}.{hint}")


def _random(value: str, images: Images, run: Run) -> Tensor:
    try:
        share = float(value)
    except ValueError:
        share = float("nan")
    if not 0 < share < 1:
        raise UserError(f"forget: random takes a share in (0, 1), got {value!r}.")
    order = torch.randperm(len(images), generator=run.rng("to forget"))
    return _at(order[: round(share * len(images))].tolist(), len(images), "random")


def _rows(name: str, value: str, images: Images) -> Tensor:
    if name not in images.columns:
        have = ", ".join(["class", *(k for k, v in images.columns.items() if np.ndim(v) == 1)])
        raise UserError(f"forget: the training images have no column {name!r}; they have: {have}.")
    column: Any = np.asarray(images.columns[name])
    if column.ndim != 1:
        raise UserError(f"forget: column {name!r} holds more than one value for each image.")
    return torch.from_numpy(column.astype(str) == value)
