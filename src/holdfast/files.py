"""Files that are either whole or absent.

A write goes to a temporary neighbour, is flushed to the disk, and then takes the final name in one step, so that a
killed process, a full disk or Ctrl-C never leaves half a file under the name a reader looks for.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.errors import UserError

__all__ = ["atomic_path", "cache_dir", "make_dir", "read_json", "sha256_of", "write_bytes", "write_json", "write_text"]


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it is synced and renamed to `path`.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    make_dir(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise _friendly(error, path) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private, and so do some writers that replace it; what we publish takes the permissions
        # that a plain open() would give.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _friendly(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write `content` to `path` atomically, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON from `path`.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (ValueError, UnicodeDecodeError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from None


def make_dir(path: str | os.PathLike[str]) -> Path:
    """Create the folder `path` with its parents and return it.

    Raises:
        UserError: a file stands in the way, or permission is lacking.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _friendly(error, path) from error
    return path


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir(*parts: str) -> Path:
    """The cache folder ``$HOLDFAST_CACHE`` or ``~/.cache/holdfast``, with `parts` below it; created if missing."""
    root = os.environ.get("HOLDFAST_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "holdfast")
    return make_dir(Path(root, *parts))


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the rename itself is still atomic
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _friendly(error: OSError, path: Path) -> UserError:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            reason = "there is no space left on the disk"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            reason = "permission is denied"
        case errno.ENOTDIR | errno.EEXIST:
            reason = "a file stands where a folder is needed"
        case errno.EISDIR:
            reason = "a folder stands where a file is needed"
        case _:
            reason = error.strerror or str(error)
    return UserError(f"{path} cannot be written: {reason}.")
