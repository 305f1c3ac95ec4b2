"""Encoded pictures to bytes: survey their headers, then decode them in parallel threads.

Whatever Pillow opens is taken: grey, colour, palette and transparent pictures, 16-bit grey, and pictures that a camera
turned. Transparency is dropped, as in the loaders people train with.
"""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from holdfast.errors import UserError
from holdfast.run import Ticker

__all__ = ["SUFFIXES", "Encoded", "PictureSource", "Survey", "decode", "eight_bits", "has_colour", "survey"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff"})

_ORIENTATION = 0x0112
_TURNED = frozenset({5, 6, 7, 8})
_UNTURNED = frozenset({"PNG", "BMP", "PPM", "GIF"})
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture as a file or as its bytes; `name` is what messages call it."""

    position: int
    name: str
    content: Path | bytes


class PictureSource(Protocol):
    """A list of encoded pictures that can be read in order, more than once."""

    @property
    def title(self) -> str:
        """What messages call the whole list."""

    @property
    def identity(self) -> str:
        """Where the pictures come from; does not change when they are edited."""

    @property
    def state(self) -> str:
        """Changes whenever a picture is added, removed or edited, or the order differs."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Encoded]: ...


@dataclass
class Survey:
    """What the headers say: how often each (height, width) occurs, with an example, and whether any has colour."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    examples: dict[tuple[int, int], str] = field(default_factory=dict)
    colour: bool = False

    def one_size(self, title: str) -> tuple[int, int]:
        """The size all pictures share.

        Raises:
            UserError: they differ.
        """
        if len(self.sizes) == 1:
            return next(iter(self.sizes))
        common = self.sizes.most_common(4)
        shown = ", ".join(f"{h}x{w} ({count}, e.g. {self.examples[h, w]})" for (h, w), count in common)
        more = f" and {len(self.sizes) - len(common)} more" if len(self.sizes) > len(common) else ""
        h, w = common[0][0]
        raise UserError(
            f"{title}: the images differ in size (height x width): {shown}{more}. Name the size to crop and resize "
            f"them to: folder({title!r}, size=[{h}, {w}])."
        )


def survey(source: PictureSource) -> Survey:
    """Read the headers of all pictures.

    Raises:
        UserError: one of them is not a picture; the message names it.
    """
    found = Survey()
    for name, size, colour in _in_threads(_header, source):
        found.sizes[size] += 1
        found.examples.setdefault(size, name)
        found.colour |= colour
    return found


def decode(source: PictureSource, into: np.ndarray[Any, Any], ticker: Ticker) -> None:
    """Decode all pictures into a uint8 array of shape (N, C, H, W); other sizes are cropped to the aspect and resized.

    Raises:
        UserError: one of them cannot be decoded; the message names it.
    """
    _, channels, height, width = into.shape

    def one(item: Encoded) -> None:
        pixels = _pixels(item, channels, height, width)
        into[item.position] = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    for done, _ in enumerate(_in_threads(one, source), 1):
        if done % 1024 == 0:
            ticker.advance(1024)


def _in_threads(work: Any, source: Iterable[Encoded]) -> Iterator[Any]:
    """`work` over the source, in order, with a bounded number of pictures in flight."""

    def many(items: list[Encoded]) -> list[Any]:
        return [work(item) for item in items]

    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: list[Any] = []
        for chunk in _chunks(source, 64):
            waiting.append(pool.submit(many, chunk))
            if len(waiting) > 4 * _THREADS:
                yield from waiting.pop(0).result()
        for future in waiting:
            yield from future.result()


def _chunks(source: Iterable[Encoded], size: int) -> Iterator[list[Encoded]]:
    chunk: list[Encoded] = []
    for item in source:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _open(item: Encoded) -> Image.Image:
    return Image.open(io.BytesIO(item.content) if isinstance(item.content, bytes) else item.content)


def _unreadable(item: Encoded, error: Exception) -> UserError:
    reason = "it is no image, or damaged" if isinstance(error, Image.UnidentifiedImageError) else str(error).rstrip(".")
    return UserError(f"{item.name} cannot be read as an image: {reason}. Replace it or take it out.")


def _header(item: Encoded) -> tuple[str, tuple[int, int], bool]:
    try:
        with _open(item) as image:
            width, height = image.size
            # A PNG may carry its orientation after the pixels; looking for it there would decode them.
            if (image.format != "PNG" or "exif" in image.info) and image.getexif().get(_ORIENTATION) in _TURNED:
                width, height = height, width
            return item.name, (height, width), has_colour(image)
    except _FAILURES as error:
        raise _unreadable(item, error) from None


def has_colour(image: Image.Image) -> bool:
    """Whether a picture's mode, or its palette, has colour."""
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return bool((palette != palette[:, :1]).any())
    return image.mode not in ("1", "L", "LA", "La", "I", "F") and not image.mode.startswith("I;16")


def _pixels(item: Encoded, channels: int, height: int, width: int) -> np.ndarray[Any, Any]:
    try:
        with _open(item) as image:
            image.load()
            turned = "exif" in image.info or image.format not in _UNTURNED
            picture = eight_bits(ImageOps.exif_transpose(image) if turned else image, item.name)
            mode = "L" if channels == 1 else "RGB"
            if picture.mode == "P":
                picture = picture.convert("RGBA")  # keeps Pillow from guessing what a transparent palette entry means
            if picture.mode != mode:
                picture = picture.convert(mode)
            if picture.size != (width, height):
                picture = ImageOps.fit(picture, (width, height), method=Image.Resampling.BILINEAR)
            return np.asarray(picture)
    except _FAILURES as error:
        raise _unreadable(item, error) from None


def eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Bring 16-bit grey to 8 bits by its full range, which plain conversion would clip.

    Raises:
        UserError: the pixels are floats or 32-bit numbers, whose range nothing tells.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(f"{name} holds {image.mode!r} pixels of unknown range; save it as an 8-bit or 16-bit PNG.")
    return image


# Pillow's decoders answer damaged files with any of these.
_FAILURES = (
    OSError, ValueError, SyntaxError, TypeError, IndexError, EOFError, OverflowError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip
