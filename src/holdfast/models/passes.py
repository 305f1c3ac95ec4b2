"""How many images a pass takes at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from holdfast.models.queryable import only_answers
from holdfast.run import Run

__all__ = ["images_per_pass"]

# More gains nothing on a CPU: it falls out of the caches, and buffers beyond 32 MiB are given back to the system after
# every layer, to be faulted in again, page by page. 512 CIFAR-10 images take a ResNet-20 a third longer than four
# times 128.
_CPU_NUMBERS = 128 * 3 * 32 * 32


def images_per_pass(model: nn.Module, shape: Sequence[int], run: Run) -> int:
    """The run's batch size, or less where a CPU is faster with less; a model that only answers gets what was asked for.

    Args:
        model: what the images pass through.
        shape: of an image, (C, H, W).
        run: device and batch size.
    """
    if run.torch_device.type != "cpu" or only_answers(model):
        return run.batch_size
    return min(run.batch_size, max(8, _CPU_NUMBERS // math.prod(shape)))
