"""The training loop behind `fit`.

It adds next to nothing to the cost of a bare PyTorch loop: batches by index from memory, augmentation on bytes, one
fused optimizer kernel, losses read back only when something waits for them. What makes it fast is the precision (bf16
autocast) and the channels-last layout, together about twice the speed of a plain float32 loop; ``benchmarks/fit.py``
measures both.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.data.images import Images
from holdfast.errors import UserError
from holdfast.models import Replays, frozen, save_weights
from holdfast.models.features import logits_of
from holdfast.run import Run, Ticker
from holdfast.training.average import averaged_copy, update_average
from holdfast.training.batches import Plan, evaluation_batches, one_ahead, prepare, read_columns, resident
from holdfast.training.checkpoint import interrupts, load_checkpoint, remove_leftovers, save_checkpoint
from holdfast.training.companions import Stream
from holdfast.training.devices import global_generators_lent, launch, repeatable, seed_global_generators, share_buffers
from holdfast.training.heads import attach, detach, put_aside
from holdfast.training.metrics import append_timing, write_metrics
from holdfast.training.settings import Settings
from holdfast.training.state import Companion, State, Step, statistics_kept

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["FitResult", "Loop"]

# Steps between two looks at the loss on an accelerator, where each look waits for the device, and between two rounds of
# asking the first process whether to save or stop.
_LOOK = 32


class Batch(NamedTuple):
    """Images, labels, and what the objective reads besides; see `Step`."""

    x: Tensor
    y: Tensor
    columns: dict[str, Tensor]
    views: tuple[Tensor, ...]
    companions: dict[str, Companion]


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What `fit` returns.

    Args:
        model: the trained model, the object that was given, in evaluation mode.
        ema_model: the running average of its weights, where one was asked for.
        history: the metrics of each epoch.
        seconds: spent training, over all sessions.
    """

    model: nn.Module
    ema_model: nn.Module | None
    history: list[dict[str, float]]
    seconds: float

    @property
    def final_model(self) -> nn.Module:
        """The average where there is one, else the model."""
        return self.model if self.ema_model is None else self.ema_model


class Loop:
    """One training; call it once. The arguments are those of `fit`."""

    def __init__(
        self, model: nn.Module, images: Images, val: Images | None, settings: Settings, *, save_seconds: float, run: Run
    ):
        self.run, self.settings, self.save_seconds = run, settings, save_seconds
        self.fabric: Fabric = launch(run)
        self.device = self.fabric.device
        needed = run.out is not None or settings.callbacks
        words = settings.in_words(model, images, val, self.fabric.world_size, run) if needed else {}
        self.plan = Plan(
            count=len(images),
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            rank=self.fabric.global_rank,
            ranks=self.fabric.world_size,
            given=settings.order,
        )
        if not self.plan.steps(0):
            raise UserError(f"{images.name}: {len(images)} images are too few for {self.plan.ranks} processes.")
        self.columns = read_columns(images, settings.objective)
        self.images, self.val = resident(images, self.device), val
        model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.objective.logits:
            check_fits(model, images, self.device)
        self.streams = {
            name: Stream(
                name=name,
                images=resident(companion, self.device),
                size=settings.objective.companion_size(name, settings.batch_size),
                run=run,
            )
            for name, companion in settings.companions.items()
        }
        self.heads = attach(model, settings.objective, images, self.device, run)
        self.bare = torch.compile(model) if settings.compile else model
        self.module = self.fabric.setup_module(self.bare, move_to_device=False)  # type: ignore[arg-type]
        optimizer = settings.optimizer(model)
        self.stepper: Any = optimizer if settings.wrapper is None else settings.wrapper(optimizer)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.state = State(
            model=model,
            optimizer=optimizer,
            run=run,
            epochs=settings.epochs,
            steps=self.plan.begin(settings.epochs),
            average=None if settings.ema is None else averaged_copy(model),
            settings=words,
            main_process=self.fabric.is_global_zero,
        )
        # Loss times images, right predictions, and images, of the epoch so far.
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.counts = torch.bincount(images.y, minlength=images.num_classes).to(self.device)
        self.recent: list[Tensor] = []
        self.replays = Replays(self.device)
        self.seconds = 0.0

    def __call__(self) -> FitResult:
        """Train to the end."""
        try:
            return self._train()
        finally:
            detach(self.state.model, self.state.average)

    def _train(self) -> FitResult:
        self._restore()
        state = self.state
        self._hook("on_start")
        with (
            global_generators_lent(self.device),
            repeatable(self.device),
            interrupts() as interrupted,
            self.run.track(state.steps, "training") as ticker,
        ):
            ticker.advance(state.index)
            while state.epoch < state.epochs and not state.stop:
                self._epoch(ticker, interrupted)
        share_buffers(self.fabric, state.model, state.average)
        self._hook("on_end")
        return FitResult(model=state.model.eval(), ema_model=state.average, history=state.history, seconds=self.seconds)

    def _epoch(self, ticker: Ticker, interrupted: Callable[[], bool]) -> None:
        state, plan = self.state, self.plan
        order = plan.batches(state.epoch, self.run)
        first = state.index - plan.begin(state.epoch)
        state.model.train(self.settings.mode == "train")
        begin = last_save = time.monotonic()
        for place, batches in enumerate(self._batches(order, first), first):
            self._step(batches)
            now = time.monotonic()
            ticker.advance(1, self._note(now - begin, place - first + 1) if self.run.progress else "")
            if plan.ranks > 1 and place % _LOOK < _LOOK - 1:
                continue
            if self._first_says(interrupted()):
                self._save(now - begin)
                raise KeyboardInterrupt
            if self._first_says(now - last_save > self.save_seconds):
                self._save(now - begin)
                last_save = time.monotonic()
        self._look()
        self._end_epoch(begin, len(order) - first)
        if self._first_says(interrupted()):
            raise KeyboardInterrupt

    def _end_epoch(self, begin: float, steps: int) -> None:
        """Measure, save and report an epoch that began at `begin` and took `steps` steps since."""
        state, plan, out = self.state, self.plan, self.run.out
        trained = time.monotonic() - begin
        share_buffers(self.fabric, state.model, state.average)
        state.metrics = self._metrics()
        self._hook("on_epoch")
        state.history.append(state.metrics)
        self._keep_best()
        state.epoch += 1
        self.sums.zero_()
        self.seconds += time.monotonic() - begin
        self._save(0.0)
        if out is not None and self.fabric.is_global_zero:
            write_metrics(out, state.history)
            speed = round(steps * plan.per_step / trained, 1)
            append_timing(out, epoch=state.epoch, seconds=round(trained, 3), images_per_second=speed)

    def _batches(self, order: list[Tensor], first: int) -> Iterator[list[Batch]]:
        """This process's batches of each step of the epoch from step `first` on, of images in this order."""
        start = self.state.index - first

        def make(place: int) -> list[Batch]:
            parts = enumerate(self.plan.parts(order[place]), self.plan.rank * self.plan.accumulate)
            return [self._batch(indices, start + place, part) for part, indices in parts]

        places = range(first, len(order))
        # Where images must travel to the device, the next step's do so during this one.
        return map(make, places) if self.images.x.device == self.device else one_ahead(make, places)

    def _batch(self, indices: Tensor, step: int, part: int) -> Batch:
        """The training images at `indices`, with what the objective reads besides."""
        objective = self.settings.objective

        def drawn(images: Images, which: Tensor, *stream: object, change: bool = True) -> tuple[Tensor, Tensor]:
            rng = self.run.rng("augment", *stream, step, part)
            return prepare(images, which, self.settings.transforms if change else (), rng, self.device)

        x, y = drawn(self.images, indices)
        slot = step * self.plan.accumulate * self.plan.ranks + part
        companions = {}
        for name, stream in self.streams.items():
            which = stream.indices(slot, objective.companion_size(name, len(indices)))
            change = name not in objective.unchanged
            companions[name] = Companion(*drawn(stream.images, which, "companion", name, change=change))
        return Batch(
            x=x,
            y=y,
            columns={name: values[indices].to(self.device) for name, values in self.columns.items()},
            views=tuple(drawn(self.images, indices, "view", k)[0] for k in range(1, objective.views)),
            companions=companions,
        )

    def _step(self, batches: list[Batch]) -> None:
        """One optimizer step: every batch's gradient, their mean, the update, the average."""
        state, settings = self.state, self.settings
        factor = settings.schedule(state.index, state.steps)
        for group, rate in zip(state.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        count = sum(len(batch.y) for batch in batches)
        offset = self.plan.rank * self.plan.accumulate
        first = True

        def closure() -> Tensor:
            # A wrapper may ask for the gradient several times per step; only the first pass, at the weights
            # themselves, is recorded in running statistics and metrics.
            nonlocal first
            recorded, first = first, False
            state.optimizer.zero_grad(set_to_none=True)
            loss = torch.zeros((), device=self.device)
            with contextlib.nullcontext() if recorded else statistics_kept(state.model):
                for i, batch in enumerate(batches):
                    more = i + 1 < len(batches)
                    weight = len(batch.y) / count
                    loss += self._gradient(batch, offset + i, weight=weight, more=more, recorded=recorded)
            if recorded:
                self.recent.append(loss)
            self._hook("on_gradient")
            return loss

        self.stepper.step(closure)
        if state.average is not None and settings.ema is not None:
            update_average(state.average, state.model, settings.ema, state.index)
        state.index += 1
        if self.device.type == "cpu" or len(self.recent) == _LOOK:
            self._look()
        self._hook("on_step")

    def _gradient(self, batch: Batch, part: int, *, weight: float, more: bool, recorded: bool) -> Tensor:
        """Add one batch's gradient; returns its share of the loss."""
        state = self.state
        x, y = batch.x, batch.y
        # Dropout and the like draw from the global generators, which thus depend on the step and nothing else.
        seed_global_generators(self.run.seed_for("layers", state.index, part), self.device)
        step = Step(
            run=self.run,
            model=self.bare,  # type: ignore[arg-type]
            epoch=state.epoch,
            index=state.index,
            total=state.steps,
            part=part,
            counts=self.counts,
            columns=batch.columns,
            views=batch.views,
            companions=batch.companions,
            heads=self.heads,
            memory=state.memory,
            replays=self.replays,
        )
        with self.fabric.no_backward_sync(self.module, enabled=more):
            loss = self.settings.objective(self.module, x, y, step)
            self.fabric.backward(loss * weight if weight != 1 else loss)
        loss = loss.detach()
        if recorded:
            self.sums[0] += loss * len(y)
            self.sums[2] += len(y)
            if step.logits is not None:
                self.sums[1] += (step.logits.argmax(1) == y).sum()
        return loss * weight

    def _look(self) -> None:
        """Read the losses since the last look, and stop where one is no number."""
        losses = torch.stack(self.recent).tolist() if self.recent else []
        self.recent.clear()
        for index, loss in enumerate(losses, self.state.index - len(losses)):
            if not math.isfinite(loss):
                rate = self.rates[0] * self.settings.schedule(index, self.state.steps)
                raise UserError(
                    f"training stopped: the loss became {loss} at epoch {self.state.epoch + 1}, step {index + 1} of "
                    f"{self.state.steps}, learning rate {rate:.3g}. Lower the learning rate or lengthen the warm-up."
                )

    def _metrics(self) -> dict[str, float]:
        """The metrics of the epoch that has just ended."""
        state = self.state
        loss, right, count = self._over_all_processes(self.sums)
        rate = self.rates[0] * self.settings.schedule(state.index - 1, state.steps)
        metrics = {"epoch": state.epoch + 1, "lr": rate, "train_loss": loss / count}
        if self.settings.objective.logits:
            metrics["train_accuracy"] = right / count
        if self.val is not None:
            evaluate = self._evaluate if self.settings.objective.logits else self._evaluate_loss
            loss, right, count = self._over_all_processes(evaluate(self.val))
            metrics["val_loss"] = loss / count
            if self.settings.objective.logits:
                metrics["val_accuracy"] = right / count
        return metrics

    @torch.no_grad()
    def _evaluate(self, images: Images) -> Tensor:
        """As `sums`: cross-entropy and right predictions on this process's share, in the run's precision."""
        model = self.state.average if self.state.average is not None else self.state.model
        sums = torch.zeros_like(self.sums)
        model.eval()
        for x, y in evaluation_batches(images, self.plan, self.device):
            with self.run.autocast():
                logits = model(x).float()
            sums[0] += F.cross_entropy(logits, y, reduction="sum")
            sums[1] += (logits.argmax(1) == y).sum()
            sums[2] += len(y)
        return sums

    @torch.no_grad()
    def _evaluate_loss(self, images: Images) -> Tensor:
        """As `_evaluate` for an objective without logits: its own loss, with the same random numbers in every epoch."""
        model = self.state.average if self.state.average is not None else self.state.model
        objective = self.settings.objective
        sums = torch.zeros_like(self.sums)
        model.eval()
        run = self.run.child("validation")
        columns = {name: v[self.plan.rank :: self.plan.ranks] for name, v in read_columns(images, objective).items()}
        begin = 0
        for index, (x, y) in enumerate(evaluation_batches(images, self.plan, self.device)):
            end = begin + len(y)
            step = Step(
                run=run,
                model=model,
                index=index,
                part=self.plan.rank,
                counts=self.counts,
                columns={name: values[begin:end].to(self.device) for name, values in columns.items()},
                views=(x,) * (objective.views - 1),
                heads=self.heads,
            )
            with self.run.autocast():
                sums[0] += objective(model, x, y, step) * len(y)
            sums[2] += len(y)
            begin = end
        return sums

    def _keep_best(self) -> None:
        state = self.state
        by_loss = not self.settings.objective.logits
        values = [-row["val_loss"] if by_loss else row["val_accuracy"] for row in state.history if "val_loss" in row]
        if self.run.out is None or not values or not self.fabric.is_global_zero:
            return
        if len(values) == 1 or values[-1] > max(values[:-1]):
            best = state.model if state.average is None else state.average
            with put_aside(best):
                save_weights(best, self.run.out / "best.safetensors", {"epoch": len(state.history)})

    def _restore(self) -> None:
        if self.run.out is None:
            return
        path = self.run.out / "checkpoint.pt"
        if self.fabric.is_global_zero:
            remove_leftovers(self.run.out)
        if path.exists():
            self.seconds = load_checkpoint(path, self.state, self.stepper, self.sums)
            if not self.fabric.is_global_zero:
                self.sums.zero_()
            elif self.state.history:
                write_metrics(self.run.out, self.state.history)

    def _save(self, since: float) -> None:
        """Write a checkpoint; `since` are the seconds of this epoch that are not counted yet."""
        if self.run.out is None:
            return
        self._look()
        if self.fabric.world_size > 1:
            # The first process takes over what all have counted, so that its checkpoint stands for all of them.
            totals = torch.tensor(self._over_all_processes(self.sums), dtype=self.sums.dtype, device=self.device)
            self.sums.copy_(totals if self.fabric.is_global_zero else torch.zeros_like(totals))
        if self.fabric.is_global_zero:
            path = self.run.out / "checkpoint.pt"
            save_checkpoint(path, self.state, self.stepper, self.sums, self.seconds + since)

    def _first_says(self, here: bool) -> bool:
        """What the first process says, in all of them."""
        return here if self.fabric.world_size == 1 else bool(self.fabric.broadcast(here))

    def _over_all_processes(self, sums: Tensor) -> list[float]:
        total = self.fabric.all_reduce(sums.clone(), reduce_op="sum")
        return [float(value) for value in total]

    def _note(self, seconds: float, steps: int) -> str:
        loss = float(self.sums[0] / self.sums[2])
        speed = steps * self.plan.per_step / max(seconds, 1e-9)
        return f"epoch {self.state.epoch + 1}/{self.state.epochs}  loss {loss:.3f}  {speed:,.0f} images/s"

    def _hook(self, name: str) -> None:
        for callback in self.settings.callbacks:
            getattr(callback, name)(self.state)


def check_fits(model: nn.Module, images: Images, device: torch.device) -> None:
    """Pass two images through the model in evaluation mode.

    Raises:
        UserError: it does not give a row of logits for each, or too few logits for the classes.
    """
    x, _ = next(images.batches(2, device))
    with frozen(model), torch.no_grad():
        logits = logits_of(model, x)
    if logits.shape[1] < (classes := images.num_classes):
        raise UserError(f"the model gives {logits.shape[1]} logits, but {images.name} has {classes} classes.")
