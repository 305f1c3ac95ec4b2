"""`cifar10` and `cifar100`: looked up, else downloaded from the official archives and packed once as parquet.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The archives' binary version is used, since
the Python version is made of pickles.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from holdfast import files
from holdfast.data.download import download
from holdfast.data.images import Data
from holdfast.data.parquet import read_parquet
from holdfast.data.source import Source
from holdfast.errors import UserError
from holdfast.run import Run

__all__ = ["CIFAR10_CLASSES", "OFFICIAL", "Cifar10", "Cifar100", "Official", "cifar", "is_here", "pack"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Official:
    """An official archive: where it is, what it must be, and how it is laid out.

    Args:
        url, md5: of the archive.
        labels: names of the label bytes before each image; ``label`` is the class.
        train, test: the files of each split, in order.
        names: the file with the class names, one a line.
    """

    url: str
    md5: str
    labels: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str

    @property
    def file(self) -> str:
        """The archive's file name."""
        return self.url.rpartition("/")[2]


OFFICIAL = {
    "cifar10": Official(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        labels=("label",),
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test=("test_batch.bin",),
        names="batches.meta.txt",
    ),
    "cifar100": Official(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        labels=("coarse", "label"),
        train=("train.bin",),
        test=("test.bin",),
        names="fine_label_names.txt",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cifar10(Source):
    """CIFAR-10: 32x32 colour photographs of ten classes, 50,000 to learn from and 10,000 to be judged on."""

    id: ClassVar[str] = "cifar10"

    def __call__(self, *, run: Run) -> Data:
        """The photographs; see `cifar`."""
        return cifar(self.id, run=run)


@dataclass(frozen=True, kw_only=True)
class Cifar100(Source):
    """CIFAR-100: 32x32 colour photographs of a hundred classes, 50,000 to learn from and 10,000 to be judged on."""

    id: ClassVar[str] = "cifar100"

    def __call__(self, *, run: Run) -> Data:
        """The photographs; see `cifar`."""
        return cifar(self.id, run=run)


def cifar(name: str, *, run: Run, official: Official | None = None) -> Data:
    """CIFAR-10 or CIFAR-100 (fine labels) as bytes, shape (N, 3, 32, 32).

    Looked for in ``$HOLDFAST_DATA/<name>``, then in the cache: ``test.parquet`` (and ``train.parquet``, which may be
    missing), or the official archive. Found nowhere, the archive is downloaded.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        run: for its progress bar.
        official: the archive; the published one by default.

    Raises:
        UserError: it is not there and cannot be downloaded; the message says where to put the files.
    """
    folder = _find(name, official or OFFICIAL[name], run)
    paths = {split: [folder / f"{split}.parquet"] for split in ("train", "test")}
    present = {split: parts for split, parts in paths.items() if parts[0].is_file()}
    splits = read_parquet(present, title=name, size=None, channels=3, run=run)
    return Data(name=name, train=splits.get("train"), test=splits["test"])


def is_here(name: str) -> bool:
    """Whether a set can be loaded without a download."""
    found = (OFFICIAL[name].file, "test.parquet")
    return any((place / file).is_file() for place in _places(name) for file in found)


def _places(name: str) -> list[Path]:
    own = os.environ.get("HOLDFAST_DATA")
    cache = files.cache_dir("data", name)
    return [Path(own).expanduser() / name, cache] if own else [cache]


def _find(name: str, official: Official, run: Run) -> Path:
    """The folder with the parquet files, made from the archive when need be."""
    places = _places(name)
    cache = places[-1]
    for place in places:
        if (place / "test.parquet").is_file():
            return place
    for place in places:
        if (place / official.file).is_file():
            _verify(place / official.file, official.md5)
            pack(place / official.file, cache, official, run)
            return cache
    archive = cache / official.file
    try:
        download(official.url, archive, md5=official.md5, run=run)
    except UserError as error:
        wanted = str(places[0]) if len(places) > 1 else f"$HOLDFAST_DATA/{name} or {cache}"
        raise UserError(
            f"{name} is not on this machine, and {str(error).rstrip('.')}; put {official.file}, or train.parquet and "
            f"test.parquet, into {wanted}."
        ) from None
    pack(archive, cache, official, run)
    archive.unlink()
    return cache


def pack(archive: Path, folder: Path, official: Official, run: Run) -> None:
    """Turn an official archive into ``train.parquet`` and ``test.parquet`` in `folder`, losslessly as PNG.

    Raises:
        UserError: the archive is damaged or lacks a file.
    """
    contents = _contents(archive, official)
    classes = contents[official.names].decode("utf-8").split()
    # The test split comes last: its presence says that the folder is whole.
    for split, names in (("train", official.train), ("test", official.test)):
        raw = np.frombuffer(b"".join(contents[name] for name in names), dtype=np.uint8)
        record = len(official.labels) + _PIXELS
        if not len(raw) or len(raw) % record:
            raise UserError(f"{archive} is damaged: {names[0]} is not made of records of {record} bytes.")
        rows = raw.reshape(-1, record)
        with run.track(len(rows), f"packing {split}") as ticker, ThreadPoolExecutor() as pool:
            encoded = []
            for png in pool.map(_png, rows[:, len(official.labels) :], chunksize=256):
                encoded.append(png)
                ticker.advance()
        pictures = pa.array([{"bytes": png} for png in encoded], pa.struct([("bytes", pa.binary())]))
        labels = {name: pa.array(rows[:, i].astype(np.int64)) for i, name in enumerate(official.labels)}
        table = pa.table({"img": pictures, **labels}).replace_schema_metadata({"classes": ",".join(classes)})
        with files.atomic_path(folder / f"{split}.parquet") as temporary:
            pq.write_table(table, temporary)


def _contents(archive: Path, official: Official) -> dict[str, bytes]:
    wanted = {*official.train, *official.test, official.names}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            found = dict(_read_wanted(tar, wanted))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} cannot be read as an archive: {str(error).rstrip('.')}.") from None
    missing = sorted(wanted - set(found))
    if missing:
        raise UserError(f"{archive} lacks {missing[0]}; it is not the official archive.")
    return found


def _read_wanted(tar: tarfile.TarFile, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        name = member.name.rpartition("/")[2]
        content = tar.extractfile(member) if member.isfile() and name in wanted else None
        if content is not None:
            yield name, content.read()


def _png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0))).save(
        out, "PNG", compress_level=3
    )
    return out.getvalue()


def _verify(archive: Path, md5: str) -> None:
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise UserError(f"{archive} has the checksum {found}, not {md5}; it is not the official archive, or not whole.")
