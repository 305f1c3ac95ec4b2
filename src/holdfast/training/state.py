"""Where a training stands: `Step` is what an objective is told; `State` is what callbacks may see and change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from holdfast.models.replay import Replays
from holdfast.run import Run

__all__ = ["Companion", "State", "Step", "statistics_kept"]


class Companion(NamedTuple):
    """A batch of images that accompany the training images: float32 in [0, 1], transformed as those are; labels."""

    x: Tensor
    y: Tensor


@dataclass(kw_only=True)
class Step:
    """What an objective is told of its batch.

    Args:
        run: seed, device, precision.
        model: the model itself, without the wrappers for several processes. Passes that should not take part in the
            averaging of gradients, such as an attack's, go through it, under ``run.autocast()``.
        epoch: counted from 0.
        index: optimizer steps done before this one.
        total: optimizer steps of the whole training.
        part: which part of the step's batch this is, over accumulation and processes.
        counts: training images per class, int64 (K,).
        columns: the batch's rows of the training set's columns that the objective reads; not augmented.
        views: the images of the batch again, each changed by another draw of the transforms; see `Objective`.
        companions: a batch of each of the companions that the objective names.
        heads: the objective's own modules, learning with the model.
        memory: what objectives must remember from step to step: tensors and plain values, under their own names. It
            is saved and restored; each process has its own.
        logits: of the pass that trains the weights, (N, K); set by `seen`.
        replays: recordings of passes that the objective makes in every batch; they live as long as the training.
    """

    run: Run = field(default_factory=Run)
    model: nn.Module | None = None
    epoch: int = 0
    index: int = 0
    total: int = 1
    part: int = 0
    counts: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    views: tuple[Tensor, ...] = ()
    companions: Mapping[str, Companion] = field(default_factory=dict)
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    logits: Tensor | None = None
    replays: Replays = field(default_factory=Replays)

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1)."""
        return self.index / self.total

    def rng(self, name: str) -> torch.Generator:
        """A fresh generator for the stream `name` of this batch; a resumed training draws the same numbers."""
        return self.run.rng(name, self.epoch, self.index, self.part)

    def seen(self, logits: Tensor) -> Tensor:
        """Note the logits from which the training accuracy is counted; returns them in float32."""
        logits = logits.float()
        self.logits = logits.detach()
        return logits


@dataclass(kw_only=True)
class State:
    """What callbacks may see and change. All of it is saved and restored, except what says otherwise.

    Args:
        model: being trained.
        average: the running average of its weights, where one was asked for.
        optimizer: with the learning rate of the current step. Between epochs its state may be changed.
        run: seed, device, precision, output folder. Not saved.
        epoch: the current epoch, counted from 0.
        index: optimizer steps done.
        epochs, steps: of the whole training.
        metrics: of the current epoch; what a callback adds here in `on_epoch` is written with the rest.
        history: metrics of the epochs done.
        memory: whatever callbacks and objectives must remember: tensors and plain values, under their own names.
        stop: set it to end the training after this epoch.
        settings: all that decides the result, by name, in words. Not saved.
        main_process: whether this process is the one that writes. Not saved.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    run: Run
    epochs: int
    steps: int
    average: nn.Module | None = None
    epoch: int = 0
    index: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    stop: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    main_process: bool = True


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """While the block runs, batch normalisation in train mode uses the batch's statistics but records nothing."""
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
    ]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
