"""What decides the result of a training, checked, and in words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from holdfast.data.images import Images
from holdfast.errors import UserError
from holdfast.methods import BatchTransform, Callback, Objective, OptimizerWrapper
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.training.batches import read_columns
from holdfast.training.optimizers import Optimizer
from holdfast.training.order import Order
from holdfast.training.schedules import Schedule

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `fit` that decide its result; see there."""

    epochs: int
    batch_size: int
    accumulate: int
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    wrapper: OptimizerWrapper | None
    callbacks: Sequence[Callback]
    transforms: Sequence[BatchTransform]
    ema: float | None
    compile: bool
    companions: Mapping[str, Images] = field(default_factory=dict)
    order: Order | None = None
    mode: Literal["train", "eval"] = "train"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"fit: {name} must be a whole number of at least 1, got {value!r}.")
        if self.mode not in ("train", "eval"):
            raise UserError(f"fit: mode must be 'train' or 'eval', got {self.mode!r}.")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UserError(f"fit: ema must be a decay in [0, 1) such as 0.999, got {self.ema!r}.")

    def in_words(self, model: nn.Module, images: Images, val: Images | None, ranks: int, run: Run) -> dict[str, str]:
        """Everything that decides the result, by name; a training resumes only where all of it is the same.

        Args:
            model: before its first step.
            images, val: the training and validation sets.
            ranks: processes that share the work.
            run: seed and precision.
        """
        return {
            "seed": str(run.seed),
            "stream": "/".join(run.scope) or "none",
            "data": f"{images.name} ({images.fingerprint()})",
            "validation data": "none" if val is None else f"{val.name} ({val.fingerprint()})",
            "starting weights": weights_hash(model),
            "epochs": str(self.epochs),
            "batch size": str(self.batch_size),
            "accumulate": str(self.accumulate),
            "processes": str(ranks),
            "objective": str(self.objective),
            **{f"column {name}": _digest(values) for name, values in read_columns(images, self.objective).items()},
            **{f"companion {name}": f"{c.name} ({c.fingerprint()})" for name, c in self.companions.items()},
            "order": "shuffled" if self.order is None else repr(self.order),
            "mode": self.mode,
            "optimizer": str(self.optimizer),
            "schedule": str(self.schedule),
            "wrapper": str(self.wrapper or "none"),
            "callbacks": ", ".join(map(str, self.callbacks)) or "none",
            "transforms": ", ".join(map(str, self.transforms)) or "none",
            "ema": str(self.ema or "none"),
            "precision": run.precision,
            "compile": str(self.compile).lower(),
        }


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()[:16]
