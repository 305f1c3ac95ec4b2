"""A file from the network: whole and with the right checksum, or absent."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from holdfast import files
from holdfast.errors import UserError
from holdfast.run import Run

__all__ = ["download"]


def download(url: str, path: Path, *, md5: str, run: Run, timeout: float = 30.0) -> None:
    """Fetch `url` into `path` atomically.

    Args:
        url: of the file.
        path: where it goes; its folder is created.
        md5: of the file's bytes, in hex, as its publisher gives it.
        run: for its progress bar.
        timeout: seconds without an answer before giving up.

    Raises:
        UserError: the network or the server does not answer, or the bytes are not those expected.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with files.atomic_path(path) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer, open(temporary, "wb") as out:
                total = int(answer.headers.get("Content-Length") or 0)
                with run.track(total / 2**20, f"downloading {path.name} (MiB)") as ticker:
                    while chunk := answer.read(2**20):
                        digest.update(chunk)
                        out.write(chunk)
                        ticker.advance(len(chunk) / 2**20)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            if isinstance(error, urllib.error.HTTPError):
                reason = f"the server answers {error.code} {reason}"
            raise UserError(f"{url} cannot be downloaded: {str(reason).rstrip('.')}.") from None
        if digest.hexdigest() != md5:
            raise UserError(f"{url} has the checksum {digest.hexdigest()}, not {md5}; the download was discarded.")
