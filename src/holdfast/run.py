"""How a computation runs: device, precision, seed, named random streams, progress, output folder, resume.

A `Run` is passed down unchanged from the caller to the innermost loop. It owns no mutable state, so two computations
given equal runs give equal results, whatever happened before them.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from holdfast.errors import UserError

__all__ = ["Precision", "Run", "Ticker", "computes_bf16", "content_keys", "uniform_at"]

console = Console(stderr=True)

Precision = Literal["auto", "fp32", "bf16"]


def computes_bf16(device: torch.device | str) -> bool:
    """Whether the device itself computes in bf16. Where it does not, convolutions in bf16 take ten times as long."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Ticker:
    """Counts work done; shows it when the run has a progress bar, and costs nothing when it has not."""

    def __init__(self, bar: Progress | None = None, task: int = 0):
        self._bar, self._task = bar, task

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Report `steps` more units done, with a short note such as ``"robust 41.2 %"``."""
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, note=note)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a computation runs.

    Args:
        seed: of every random stream.
        device: ``"auto"`` (CUDA when there is one), or any torch device string.
        precision: of passes whose rounding cannot change a verdict: training, gradients, and the first look of a random
            search at what it tries. Whatever decides a verdict, or which point such a search keeps, runs in fp32.
            ``"auto"`` is ``"bf16"`` where the device computes in it, otherwise ``"fp32"``.
        batch_size: images per forward pass in evaluation, at most: a CPU takes fewer where that is faster. Results do
            not depend on it.
        out: folder for results; ``None`` keeps nothing on disk.
        progress: show progress bars on standard error.
        scope: names of the enclosing tasks, so that streams of one task never coincide with another's.
    """

    seed: int = 0
    device: str = "auto"
    precision: Precision = "fp32"
    batch_size: int = 512
    out: Path | None = None
    progress: bool = False
    scope: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise UserError(f"run: seed must be a whole number in [0, 2^63), got {self.seed!r}.")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UserError(f"run: batch_size must be a whole number of at least 1, got {self.batch_size!r}.")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise UserError(f"run: precision must be 'auto', 'fp32' or 'bf16', got {self.precision!r}.")
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else str(self.device)
        try:
            kind = torch.device(device).type
        except RuntimeError:
            raise UserError(f"run: device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {self.device!r}.") from None
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError(f"run: device {device!r} was asked for, but PyTorch sees no CUDA device here.")
        object.__setattr__(self, "device", device)
        if self.precision == "auto":
            object.__setattr__(self, "precision", "bf16" if computes_bf16(device) else "fp32")
        elif self.precision == "bf16" and not computes_bf16(device):
            warnings.warn(
                "precision='bf16': this processor only imitates bf16, ten times slower than it computes in 'fp32'; "
                "'auto' takes bf16 where the hardware has it.",
                stacklevel=3,
            )
        if self.out is not None:
            object.__setattr__(self, "out", Path(self.out))

    def seed_for(self, name: str, *more: object) -> int:
        """A 63-bit seed that depends on the run's seed, its scope, and the given names, and on nothing else."""
        text = "\x1f".join(map(str, (self.seed, *self.scope, name, *more)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1

    def rng(self, name: str, *more: object) -> torch.Generator:
        """A fresh CPU generator for the stream `name`: adding a stream never shifts another's numbers."""
        return torch.Generator().manual_seed(self.seed_for(name, *more))

    def numpy_rng(self, name: str, *more: object) -> np.random.Generator:
        """A fresh NumPy generator for the stream `name`."""
        return np.random.default_rng(self.seed_for(name, *more))

    def child(self, name: str) -> Run:
        """The run of a sub-task: own random streams, own sub-folder of `out`."""
        out = None if self.out is None else self.out / name
        return replace(self, scope=(*self.scope, name), out=out)

    def but(self, **changes: object) -> Run:
        """This run with some fields changed, e.g. ``run.but(batch_size=64)``."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def torch_device(self) -> torch.device:
        """The device as a `torch.device`."""
        return torch.device(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The autocast context for passes that may round: bf16 when the run says so, otherwise nothing."""
        if self.precision == "bf16":
            return torch.autocast(self.torch_device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def track(self, total: float, label: str) -> Iterator[Ticker]:
        """Show a progress bar of `total` units while the block runs; yields the `Ticker` to advance."""
        if not self.progress or not sys.stderr.isatty():
            yield Ticker()
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            yield Ticker(bar, bar.add_task(label, total=total, note=""))


# --- Randomness that belongs to a sample, not to its place in a batch ------------------------------------------------
#
# Attacks drop samples from the batch as they fall. If noise came from one sequential generator, a sample's noise would
# depend on who else was still there. Instead every random number is a hash of (stream, sample, position): the sample is
# known by its content, so results are independent of batch size, order and number of devices.

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (PyTorch's own is arithmetic)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014): a bijection of 64-bit words with full avalanche."""
    value = (value ^ _shift_right(value, 30)) * _MIX1
    value = (value ^ _shift_right(value, 27)) * _MIX2
    return value ^ _shift_right(value, 31)


def content_keys(x: Tensor) -> Tensor:
    """A 64-bit key for each sample of `x` (N, ...), computed from its values alone; equal samples get equal keys.

    Returns:
        int64 tensor of shape (N,), on the device of `x`.
    """
    words = x.detach().flatten(1).float().contiguous().view(torch.int32).long()
    positions = torch.arange(1, words.shape[1] + 1, device=x.device) * _GOLDEN
    return _splitmix(_splitmix(words ^ positions).sum(1))


def uniform_at(seed: int, keys: Tensor, count: int, offset: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) that depend only on (`seed`, key, position), never on the batch.

    Args:
        seed: the stream, from `Run.seed_for`.
        keys: int64 (N,), one per sample, from `content_keys`.
        count: numbers per sample.
        offset: position of the first one in the sample's stream.

    Returns:
        float32 tensor (N, count) on the device of `keys`, with 24 random bits each.
    """
    positions = torch.arange(offset + 1, offset + count + 1, device=keys.device) * _GOLDEN
    start = _splitmix(keys ^ seed)
    bits = _shift_right(_splitmix(start[:, None] + positions), 40)
    return bits.float() * 2.0**-24
