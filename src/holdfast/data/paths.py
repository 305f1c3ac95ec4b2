"""Whatever a user has at a path, recognised by what it is: folder, archive, parquet table, NumPy archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from holdfast.data.archives import SUFFIXES, extracted
from holdfast.data.folders import read_folder
from holdfast.data.images import Data
from holdfast.data.npz import read_npz
from holdfast.data.parquet import WHOLE, read_parquet
from holdfast.data.source import Source
from holdfast.errors import UserError
from holdfast.run import Run

__all__ = ["Folder", "read_path"]


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Anything at a path, with a say in how pictures are read.

    Args:
        path: a folder, an archive of one, a parquet table, or a NumPy archive.
        size: side, or height and width, to crop and resize to; by default all pictures must share one.
        channels: 1 or 3; by default 1 when no picture has colour.
    """

    id: ClassVar[str] = "folder"

    path: str
    size: int | list[int] | None = None
    channels: Literal[1, 3] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = [self.size] if isinstance(self.size, int) else self.size
        if sides is not None and (not 1 <= len(sides) <= 2 or not all(1 <= side <= 4096 for side in sides)):
            raise UserError(f"folder: size must be a side or [height, width], each in [1, 4096], got {self.size}.")

    def __call__(self, *, run: Run) -> Data:
        """See `read_path`."""
        sides = [self.size] if isinstance(self.size, int) else self.size
        size = None if sides is None else (sides[0], sides[-1])
        return read_path(self.path, size=size, channels=self.channels, run=run)


def read_path(path: str | Path, *, size: tuple[int, int] | None = None, channels: int | None = None, run: Run) -> Data:
    """Read the data set at a path.

    Args:
        path: a folder (see `holdfast.data.folders`), an archive of such a folder, a ``.parquet`` table
            (`holdfast.data.parquet`) or a ``.npz`` file (`holdfast.data.npz`).
        size: height and width to crop and resize to; by default all pictures must share one.
        channels: 1 or 3; by default 1 when no picture has colour.
        run: for its progress bar.

    Raises:
        UserError: there is nothing, or it is none of these.
    """
    title = str(path)
    path = Path(path).expanduser()
    name = path.name.lower()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # too long, or with a character no path has
        is_folder = is_file = False
    if is_folder:
        return read_folder(path, title=title, size=size, channels=channels, run=run)
    if not is_file:
        raise UserError(f"{title}: no such file or folder.")
    if not path.stat().st_size:
        raise UserError(f"{title}: the file is empty.")
    if name.endswith(".npz"):
        return read_npz(path, title=title, size=size, channels=channels)
    if name.endswith(".parquet"):
        parts = read_parquet({WHOLE: [path]}, title=title, size=size, channels=channels, run=run)
        return Data(name=path.stem, train=parts["train"], val=parts["val"], test=parts["test"])
    if name.endswith(SUFFIXES):
        data = read_folder(extracted(path), title=title, size=size, channels=channels, run=run)
        return data.but(name=path.name[: -len(next(s for s in SUFFIXES if name.endswith(s)))])
    kinds = ", ".join([".npz", ".parquet", *SUFFIXES])
    raise UserError(f"{title} is of no kind that holds a data set; it takes a folder, or a file ending in {kinds}.")
