"""Archives of a data set, extracted with care: nothing is written outside, no links, no bombs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from holdfast import files
from holdfast.errors import UserError

__all__ = ["SUFFIXES", "Limits", "extracted"]

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to.

    Args:
        size: bytes in all.
        count: files.
        ratio: how many times its packed size, once it is past `free` bytes. Pictures hardly shrink when packed, so a
            large ratio is a bomb rather than a data set.
        free: bytes allowed whatever the ratio.
    """

    size: int = 500 * 2**30
    count: int = 10_000_000
    ratio: float = 100.0
    free: int = 2**28


def extracted(path: Path, limits: Limits = Limits()) -> Path:
    """The folder with the archive's files, in the cache; extracted once for each state of the archive.

    Raises:
        UserError: it is no archive, is encrypted or damaged, holds a link or a path that leads outside, or unpacks to
            more than the limits.
    """
    found = path.stat()
    key = f"{path.resolve()}|{found.st_size}|{found.st_mtime_ns}".encode("utf-8", "surrogateescape")
    target = files.cache_dir("extracted") / hashlib.sha256(key).hexdigest()[:24]
    if not target.is_dir():
        # Extracted under another name and renamed when whole, so that a killed process leaves nothing half-done.
        temporary = Path(tempfile.mkdtemp(prefix=".extracting-", dir=target.parent))
        try:
            _extract(path, temporary, limits)
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.replace(temporary, target)
        except OSError as error:
            if not target.is_dir():
                raise UserError(
                    f"{path} cannot be extracted into {target.parent}: {error.strerror or error}."
                ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _without_wrapper(target)


@dataclass(frozen=True)
class _Member:
    name: str
    content: IO[bytes] | None
    link: bool


def _extract(path: Path, folder: Path, limits: Limits) -> None:
    most = min(limits.size, max(limits.free, int(limits.ratio * path.stat().st_size)))
    most = min(most, shutil.disk_usage(folder).free)
    written = count = 0
    root = folder.resolve()
    try:
        for member in _members(path):
            target = _inside(root, member, path)
            if member.content is None:
                continue
            count += 1
            if count > limits.count:
                raise UserError(f"{path} holds more than {limits.count:,} files.")
            files.make_dir(target.parent)
            with open(target, "xb") as out:
                # The size in the header may lie; what counts is what comes out.
                while chunk := member.content.read(2**20):
                    written += len(chunk)
                    if written > most:
                        raise UserError(
                            f"{path} unpacks to more than {most / 2**20:,.0f} MiB; extract it yourself and name the "
                            "folder if that is right."
                        )
                    out.write(chunk)
    except FileExistsError as error:
        raise UserError(f"{path} holds {Path(str(error.filename)).name!r} twice.") from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an archive: {str(error).rstrip('.') or 'it is damaged'}.") from None
    except RuntimeError as error:  # what zipfile raises for encrypted files
        raise UserError(f"{path} cannot be extracted: {str(error).rstrip('.')}.") from None


def _inside(root: Path, member: _Member, path: Path) -> Path:
    pure = PurePosixPath(member.name)
    if member.link:
        raise UserError(
            f"{path} holds {member.name!r}, which is a link or device; only files and folders are extracted."
        )
    if pure.is_absolute() or ".." in pure.parts or "\\" in member.name or "\0" in member.name:
        raise UserError(f"{path} holds {member.name!r}, a path that leads outside; nothing of it was kept.")
    return root.joinpath(*pure.parts)


def _members(path: Path) -> Iterator[_Member]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                mode = info.external_attr >> 16
                link = bool(mode) and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
                if info.is_dir() or link:
                    yield _Member(info.filename, None, link)
                else:
                    with archive.open(info) as packed:
                        yield _Member(info.filename, packed, False)
        return
    with tarfile.open(path, "r:*") as archive:
        for entry in archive:
            content = archive.extractfile(entry) if entry.isfile() else None
            yield _Member(entry.name, content, not entry.isfile() and not entry.isdir())


def _without_wrapper(folder: Path) -> Path:
    """Step into the one folder that archives are usually packed with, as long as it holds folders or tables itself."""
    while True:
        inside = [p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX"]
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        within = list(inside[0].iterdir())
        if not any(p.is_dir() or p.suffix.lower() == ".parquet" for p in within):
            return folder
        folder = inside[0]
