"""`fit`, the one way in which models are trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from holdfast import catalog
from holdfast.data.images import Images
from holdfast.errors import UserError
from holdfast.methods import BatchTransform, Callback, Objective, OptimizerWrapper
from holdfast.run import Run
from holdfast.training.companions import check_companions
from holdfast.training.cross_entropy import CrossEntropy
from holdfast.training.loop import FitResult, Loop
from holdfast.training.optimizers import SGD, Optimizer
from holdfast.training.order import Order
from holdfast.training.schedules import OneCycle, Schedule
from holdfast.training.settings import Settings

__all__ = ["FitResult", "fit"]


def fit(
    model: nn.Module,
    images: Images,
    *,
    epochs: int,
    batch_size: int = 128,
    objective: Objective | str = CrossEntropy(),  # noqa: B008  methods are immutable
    optimizer: Optimizer | str = SGD(),  # noqa: B008
    schedule: Schedule | str = OneCycle(),  # noqa: B008
    wrapper: OptimizerWrapper | str | None = None,
    callbacks: Sequence[Callback | str] = (),
    transforms: Sequence[BatchTransform | str] = (),
    companions: Mapping[str, Images] | None = None,
    order: Order | None = None,
    mode: Literal["train", "eval"] = "train",
    val: Images | None = None,
    ema: float | None = None,
    accumulate: int = 1,
    compile: bool = False,
    save_minutes: float = 5.0,
    run: Run,
) -> FitResult:
    """Train `model` on `images`, in place.

    With ``run.out`` set, a checkpoint is kept there and a training that was stopped, even killed, goes on where it
    was: calling `fit` again with the same arguments gives the same weights and metrics, to the last bit, as if it had
    never stopped (on the same machine with the same number of threads). The folder also gets ``metrics.csv``,
    ``metrics.jsonl``, ``timing.jsonl`` and, where there is a validation set, ``best.safetensors``.

    Args:
        model: any module from images in [0, 1] to logits, or whatever the objective takes where it says that it needs
            no logits; it is moved to the run's device.
        images: the training set.
        epochs: passes over it.
        batch_size: images per forward pass, in each process.
        objective, optimizer, schedule, wrapper, callbacks, transforms: methods, or specs such as ``"sgd(lr=0.1)"``.
        companions: further sets of images, by the names that the objective gives them, e.g. ``{"outliers": images}``. A
            batch of each accompanies every training batch, changed by the same transforms unless the objective says
            otherwise; an image comes again only
            when all others of its set have come.
        order: which images make up which step; by default each epoch shuffles all of them. `InTurn`, `Alternating`
            and `Interleaved` keep two groups of images apart.
        mode: of the model meanwhile. In ``"eval"``, batch normalisation uses its running statistics and leaves them as
            they are, and dropout drops nothing.
        val: its accuracy is measured after every epoch, of the average where there is one; its loss alone where the
            objective needs no logits.
        ema: keep a running average of the weights with this decay, e.g. 0.999.
        accumulate: forward passes per optimizer step; 2 with half the batch size is the same step as 1.
        compile: compile the model with `torch.compile` first.
        save_minutes: between checkpoints within an epoch; there is one after every epoch in any case.
        run: device, precision, seed, output folder.

    Returns:
        The model in evaluation mode, its average, and the metrics.

    Raises:
        UserError: an argument does not fit, the loss becomes NaN or infinite, or ``run.out`` holds another training.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint was saved.
    """
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        objective=catalog.build(objective, kind=Objective),
        optimizer=catalog.build(optimizer, kind=Optimizer),
        schedule=catalog.build(schedule, kind=Schedule),
        wrapper=None if wrapper is None else catalog.build(wrapper, kind=OptimizerWrapper),
        callbacks=[catalog.build(c, kind=Callback) for c in callbacks],
        transforms=[catalog.build(t, kind=BatchTransform) for t in transforms],
        ema=ema,
        compile=compile,
        companions=dict(companions or {}),
        order=order,
        mode=mode,
    )
    if not len(images):
        raise UserError(f"{images.name}: there are no images to train on.")
    if val is not None and not len(val):
        raise UserError(f"{val.name}: there are no images to validate on.")
    check_companions(settings.objective, settings.companions, images)
    if val is not None and not settings.objective.logits and settings.objective.companions:
        raise UserError(f"{settings.objective.id}: it cannot be validated, for validation has no companions.")
    return Loop(model, images, val, settings, save_seconds=60 * save_minutes, run=run)()
