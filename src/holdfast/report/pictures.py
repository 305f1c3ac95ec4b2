"""Pictures of an audit as ``img`` elements, after a check that they are PNG files and nothing else."""

from __future__ import annotations

import base64
import binascii
import io

from markupsafe import Markup, escape
from PIL import Image

from holdfast.audit.findings import Picture

__all__ = ["image", "png_size"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST = 4096  # pixels on a side
_HEAVIEST = 2**22  # bytes


def image(picture: Picture) -> Markup:
    """An ``img`` with the picture as data URI, or a note in its place when the data are not a sound, small PNG.

    What goes into the page is encoded anew from the checked bytes, so nothing but base64 can stand in the attribute.
    """
    content = _decoded(picture.png)
    size = png_size(content) if content is not None else None
    if content is None or size is None:
        return Markup('<span class="broken">not a PNG image</span>')
    text = base64.b64encode(content).decode("ascii")
    about = ", ".join(part for part in (picture.label, picture.note) if part)
    return Markup('<img src="data:image/png;base64,{}" width="{}" height="{}" alt="{}">').format(
        text, *size, escape(about)
    )


def png_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a sound PNG; None for anything else, and for one too large to show."""
    if not content.startswith(_SIGNATURE) or len(content) > _HEAVIEST:
        return None
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            size = opened.size
            if max(size) > _LARGEST:
                return None
            opened.verify()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's words for a damaged file
        return None
    return size


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
