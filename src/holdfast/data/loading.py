"""Batches of a data set: by index where it fits into memory, read ahead in the background where it does not.

A set in memory needs no workers: taking a batch by index costs far less than handing it from process to process. A
mapped file larger than memory waits for the disk, and threads wait as well as processes do, since PyTorch copies
without holding the interpreter's lock; they share the mapping, start at once, and need no pickling. Twelve shuffled
batches of 128 224x224 images from a cold file took 8.7 s with threads and 9.2 s with two worker processes of PyTorch's
own loader (best of four, alternating). The batches are the same either way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from holdfast.data.images import Images

__all__ = ["IN_MEMORY", "Loader", "loader", "read_batches"]

# Bytes up to which a set is taken to fit into memory.
IN_MEMORY = 4 * 2**30

_THREADS = 4
_AHEAD = 8


@dataclass(frozen=True)
class Loader:
    """Batches of images and labels, anew at each iteration; see `loader`."""

    images: Images
    batch_size: int
    rng: torch.Generator | None
    drop_last: bool
    device: torch.device
    in_memory: int

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, size = self.images, self.batch_size
        if self.rng is None:
            places: list[slice] | list[Tensor] = [slice(i, i + size) for i in range(0, len(images), size)]
        else:
            places = list(torch.randperm(len(images), generator=self.rng).split(size))
        return read_batches(images.x, images.y, places[: len(self)], self.device, self.in_memory)


def loader(
    images: Images,
    batch_size: int,
    *,
    rng: torch.Generator | None = None,
    drop_last: bool = False,
    device: str | torch.device = "cpu",
    in_memory: int = IN_MEMORY,
) -> Loader:
    """Batches of float32 channels-last images in [0, 1] with their labels.

    Args:
        images: the split.
        batch_size: images per batch; the last one may be smaller.
        rng: shuffles, differently at each iteration; ``None`` keeps the order.
        drop_last: leave out a smaller last batch.
        device: where the batches go.
        in_memory: bytes up to which the split is indexed directly; above, batches are read ahead by threads.
    """
    return Loader(images, batch_size, rng, drop_last, torch.device(device), in_memory)


def read_batches(
    x: Tensor, y: Tensor, places: Sequence[slice] | Sequence[Tensor], device: torch.device, in_memory: int = IN_MEMORY
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches at `places`, in that order, as float32 channels-last images in [0, 1] with their labels."""

    def read(place: slice | Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(place, slice):
            rows = x[place].clone() if large else x[place]
        else:
            # In ascending order the disk is read forwards.
            order = torch.argsort(place)
            rows = x[place[order]][torch.argsort(order)] if large else x[place]
        return rows, y[place]

    def ready(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        rows, labels = rows.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        floats = rows.float().div_(255) if rows.dtype == torch.uint8 else rows.float()
        return floats.contiguous(memory_format=torch.channels_last), labels

    large = x.numel() * x.element_size() > in_memory
    if not large:
        for place in places:
            yield ready(*read(place))
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        coming: deque[Future[tuple[Tensor, Tensor]]] = deque()
        try:
            for place in places:
                coming.append(pool.submit(read, place))
                if len(coming) > _AHEAD:
                    yield ready(*coming.popleft().result())
            while coming:
                yield ready(*coming.popleft().result())
        finally:
            for future in coming:
                future.cancel()
