"""How long a model takes: for one image, and in bulk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.models.freeze import frozen
from holdfast.run import Run

__all__ = ["Latency", "latency"]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall-clock times of forward passes, in evaluation mode.

    Args:
        samples_ms: milliseconds of each pass over one image.
        bulk_ms: milliseconds of each pass over `batch` images.
        batch: images per bulk pass.
        device: where it ran.
        threads: CPU threads PyTorch used.
    """

    samples_ms: tuple[float, ...]
    bulk_ms: tuple[float, ...]
    batch: int
    device: str
    threads: int

    @property
    def median_ms(self) -> float:
        """Median time for one image."""
        return float(np.median(self.samples_ms))

    @property
    def p95_ms(self) -> float:
        """95th percentile of the time for one image."""
        return float(np.percentile(self.samples_ms, 95))

    @property
    def throughput(self) -> float:
        """Images per second in bulk, from the median pass."""
        return self.batch / float(np.median(self.bulk_ms)) * 1000


def latency(
    model: nn.Module, shape: Sequence[int], run: Run, *, repeats: int = 50, batch: int = 128, seconds: float = 2.0
) -> Latency:
    """Time forward passes on random images after a warm-up.

    Args:
        model: in any mode; it is left as it was.
        shape: channels, height, width.
        run: device, and the stream ``latency`` of the images.
        repeats: passes over one image; bulk passes are a fifth as many, at least 3.
        batch: images per bulk pass.
        seconds: stop each of the two series after this time, once it has 3 passes.

    Raises:
        UserError: the model fails on images of this shape.
    """
    device = run.torch_device
    x = (
        torch.rand((batch, *shape), generator=run.rng("latency"))
        .to(device)
        .contiguous(memory_format=torch.channels_last)
    )
    with frozen(model, device=device, check=x[:2]), torch.no_grad():
        one = x[:1].contiguous(memory_format=torch.channels_last)
        samples = _times(model, one, repeats, seconds)
        bulk = _times(model, x, max(3, repeats // 5), seconds)
    return Latency(samples_ms=samples, bulk_ms=bulk, batch=batch, device=str(device), threads=torch.get_num_threads())


def _times(model: nn.Module, x: Tensor, repeats: int, seconds: float) -> tuple[float, ...]:
    def once() -> float:
        start = time.perf_counter()
        model(x)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        return (time.perf_counter() - start) * 1000

    for _ in range(3):  # first passes choose kernels and allocate
        once()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < repeats and (len(times) < 3 or time.perf_counter() < until):
        times.append(once())
    return tuple(times)
