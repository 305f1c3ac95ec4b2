"""Relabel: classes kept, dropped, renamed or merged, with the labels counted anew."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from holdfast.data.images import Images
from holdfast.errors import UserError, one_of
from holdfast.methods import Transform
from holdfast.run import Run

__all__ = ["Relabel"]

_ARROW = "->"


@dataclass(frozen=True, kw_only=True)
class Relabel(Transform, id="relabel", title="Classes kept, dropped, renamed or merged"):
    """Changes what the classes are; the column ``original_label`` keeps the old labels.

    The new classes stand in the order in which the old ones led to them. On the command line:
    ``relabel(keep=[cat, dog, ship], mapping=["cat->animal", "dog->animal"])``.

    Args:
        keep: the classes to keep, by name; all by default.
        drop: the classes to leave out; give this or `keep`.
        mapping: new names as ``"old->new"``; classes of the same new name are merged.
    """

    keep: tuple[str | int, ...] | None = None
    drop: tuple[str | int, ...] | None = None
    mapping: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None and self.drop is not None:
            raise UserError(f"{self.id}: give either keep or drop, got both.")
        old = [self._pair(entry)[0] for entry in self.mapping]
        twice = next((name for name in old if old.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{self.id}: mapping renames {twice!r} twice.")

    def __call__(self, images: Images, *, run: Run) -> Images:
        """The images of the classes that stay, relabelled."""
        renamed = dict(self._pair(entry) for entry in self.mapping)
        kept = None if self.keep is None else {str(name) for name in self.keep}
        dropped = {str(name) for name in self.drop or ()}
        for name in [*renamed, *(kept or ()), *dropped]:
            if name not in images.classes:
                raise one_of(f"{self.id}: the class", name, images.classes)
        stay = [name for name in images.classes if name not in dropped and (kept is None or name in kept)]
        classes = tuple(dict.fromkeys(renamed.get(name, name) for name in stay))
        table = torch.tensor(
            [classes.index(renamed.get(name, name)) if name in stay else -1 for name in images.classes],
            dtype=torch.int64,
        )
        y = table[images.y]
        rows = torch.nonzero(y >= 0).flatten()
        if not len(rows):
            raise UserError(f"{self.id}: no image of {images.name} is left.")
        chosen = images if len(rows) == len(images) else images.select(rows)
        return chosen.but(y=y[rows], classes=classes).with_column("original_label", images.y[rows])

    def _pair(self, entry: str) -> tuple[str, str]:
        old, arrow, new = entry.partition(_ARROW)
        if not arrow or not old.strip() or not new.strip():
            raise UserError(f"{self.id}: mapping takes entries such as 'cat->animal', got {entry!r}.")
        return old.strip(), new.strip()
