"""Where a training runs: Lightning Fabric gives the device, the precision, and the processes.

One process unless a launcher such as ``torchrun`` has started several; then each holds the whole model, takes its own
share of every batch, and gradients are averaged (DDP).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from holdfast.run import Run

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "first_process",
    "gathered",
    "global_generators_lent",
    "launch",
    "processes",
    "repeatable",
    "seed_global_generators",
    "share_buffers",
]


def processes() -> int:
    """How many processes a launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_process() -> bool:
    """Whether this is the process that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def launch(run: Run) -> Fabric:
    """The Fabric of a run, started; in every process that a launcher has made."""
    # Fabric takes a second to import, which whoever only lists methods should not wait for.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision import MixedPrecision

    device = run.torch_device
    plugins: list[Any] = [MixedPrecision("bf16-mixed", device.type)] if run.precision == "bf16" else []
    ranks = processes()
    if ranks > 1:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
        fabric = Fabric(
            accelerator=device.type, devices=local, num_nodes=ranks // local, strategy="ddp", plugins=plugins
        )
        fabric.launch()
        return fabric
    devices: Any = [device.index or 0] if device.type == "cuda" else 1
    return Fabric(accelerator=device.type, devices=devices, plugins=plugins)


def gathered(fabric: Fabric, value: Any) -> list[Any]:
    """What every process has brought, in the order of their ranks; each brings something."""
    everyone: list[Any] = [value] * fabric.world_size
    if fabric.world_size > 1:
        torch.distributed.all_gather_object(everyone, value)
    return everyone


@torch.no_grad()
def share_buffers(fabric: Fabric, *models: nn.Module | None) -> None:
    """Give every process the buffers of the first: running statistics differ, as each saw its own images."""
    if fabric.world_size == 1:
        return
    for model in models:
        for buffer in model.buffers() if model is not None else ():
            buffer.copy_(_broadcast(fabric, buffer))


def _broadcast(fabric: Fabric, tensor: Tensor) -> Tensor:
    sent = tensor.clone()
    torch.distributed.broadcast(sent, src=0)
    return sent


@contextlib.contextmanager
def global_generators_lent(device: torch.device) -> Iterator[None]:
    """While the block runs, the global generators may be seeded at will; then they are as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """While the block runs, cuDNN takes algorithms that repeat their results; resuming a training needs that."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
        yield


def seed_global_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that random layers draw from; only inside `global_generators_lent`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
