"""Passes recorded once and replayed: what makes small networks fast on a GPU.

A pass of ResNet-20 launches some two hundred kernels, and launching them takes a CPU several times longer than running
them takes an H200. A CUDA graph launches all of them at once. It repeats the same kernels on the same addresses, hence
the rules here: shapes are rounded up to a few sizes, the model must treat the rows of a batch independently, weights
may change in place but not move, and a recording is used only after it has repeated what the plain pass gave.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Replays"]

Pass = Callable[..., tuple[Tensor, ...]]

_LEAST = 32  # rows; smaller batches take no less time
_AFTER = 2  # plain passes of a kind before one is recorded: a short attack never pays for a recording
_MOST = 64  # recordings
_AGREEMENT = (
    0.1  # relative, in the Euclidean norm: with more rows cuDNN may pick another algorithm, which rounds otherwise
)


class Replays:
    """Recorded passes, by kind and number of rows. On a CPU every pass is simply made.

    Args:
        device: where the passes run.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self._enabled = torch.device(device).type == "cuda"
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, _Recording | None] = {}
        # One pool of memory for all: what a replay leaves there is copied out before the next one begins.
        self._pool = torch.cuda.graph_pool_handle() if self._enabled else None

    def __call__(self, kind: Hashable, work: Pass, *rows: Tensor) -> tuple[Tensor, ...]:
        """``work(*rows)``, from a recording where there is one.

        Args:
            kind: what `work` does; two calls of one kind must differ in nothing but the rows (and in what weights
                hold). Whatever else the work depends on belongs into the kind.
            work: from tensors with N rows each to tensors with N rows each, without reading a value back.
            rows: on the device; their shapes without N decide which recording fits.

        Returns:
            New tensors: later calls leave them alone.
        """
        count = len(rows[0])
        if not self._enabled or not count:
            return work(*rows)
        size = max(_LEAST, 1 << (count - 1).bit_length())
        key = (kind, size, *((r.shape[1:], r.dtype, r.stride()[1:]) for r in rows))
        self._seen[key] += 1
        if key not in self._recorded:
            if self._seen[key] <= _AFTER or len(self._recorded) >= _MOST:
                return work(*rows)
            self._recorded[key] = _record(work, size, rows, self._pool)
        recording = self._recorded[key]
        return work(*rows) if recording is None else recording(*rows)


class _Recording:
    """One pass of `size` rows in a CUDA graph, with the memory it reads and writes."""

    def __init__(self, work: Pass, size: int, rows: tuple[Tensor, ...], pool: Any):
        self._inputs = [_room_for(r, size) for r in rows]
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):  # libraries set themselves up at first use, which must not be recorded
            for _ in range(2):
                work(*self._inputs)
        current.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        state = generator.graphsafe_get_state()
        # A recording that fails leaves the generator unusable, so it gets one of its own to spoil.
        generator.graphsafe_set_state(generator.clone_state())
        try:
            # Other threads may go on using the device while this one records.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self._outputs = work(*self._inputs)
        finally:
            generator.graphsafe_set_state(state)

    def __call__(self, *rows: Tensor) -> tuple[Tensor, ...]:
        count = len(rows[0])
        for mine, given in zip(self._inputs, rows, strict=True):
            mine[:count].copy_(given)
        self._graph.replay()
        return tuple(output[:count].clone() for output in self._outputs)


def _record(work: Pass, size: int, rows: tuple[Tensor, ...], pool: Any) -> _Recording | None:
    """A recording that has been seen to repeat the pass, or None where there can be none.

    A model that reads values back, takes decisions in Python or answers at random cannot be recorded, or does not
    repeat itself.
    """
    expected = work(*rows)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty graph warns; what counts is the comparison
            recording = _Recording(work, size, rows, pool)
            got = recording(*rows)
    except RuntimeError:  # any operation may refuse to be recorded, and so may a device short of memory
        torch.cuda.synchronize()
        return None
    return recording if all(_agree(a, b) for a, b in zip(expected, got, strict=True)) else None


def _agree(expected: Tensor, got: Tensor) -> bool:
    a, b = expected.double(), got.double()
    return bool(torch.linalg.vector_norm(a - b) <= _AGREEMENT * torch.linalg.vector_norm(a))


def _room_for(values: Tensor, size: int) -> Tensor:
    """Zeros for `size` rows like `values`, beginning with them, in their memory format."""
    last = values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    room = torch.empty((size, *values.shape[1:]), dtype=values.dtype, device=values.device, memory_format=layout)
    room.zero_()[: len(values)] = values
    return room
