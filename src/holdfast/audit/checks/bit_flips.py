"""Whether the model survives flipped bits in its stored weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Chart, Metric, Series, Table
from holdfast.audit.subject import Subject
from holdfast.compression import flip_bits, worst_flip
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.models import predict

__all__ = ["BitFlips"]

Trials = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class BitFlips(Check):
    """Accuracy when every bit of every weight flips with a small probability, and the worst single flip of many.

    Args:
        rates: of flips, per bit.
    """

    id = "bit-flips"
    section = "fault"
    title = "Weight faults"
    question = "Does it survive flipped bits in its weights?"
    needs = ("weights",)

    rates: tuple[float, ...] = (1e-7, 1e-6, 1e-5, 1e-4)

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        if next(subject.model.parameters(), None) is None:
            raise UserError("The model has no weights whose bits could flip.")
        images = subject.first(subject.profile.fault_images)
        clean = float(subject.predictions("test").correct[: len(images)].mean())
        trials = {rate: self._trials(subject, images, rate) for rate in self.rates}
        metrics = []
        for rate, found in trials.items():
            metrics += _metrics(subject, rate, found, clean)
        clean_single, worst, where, bits = self._worst_single(subject)
        metrics.append(
            Metric(
                name="worst-single-flip",
                value=clean_single - worst,
                n=bits,
                unit="points",
                better="lower",
                title=f"Accuracy lost by the worst of {bits} single flips of exponent bits ({where})",
            )
        )
        return Answer(
            metrics=metrics,
            figures=[_chart(trials, clean), _table(trials, clean)],
            remedies=[
                Remedy(
                    Action(
                        text="Store a checksum of the weights and reload them when it fails; clip activations to the "
                        "range seen in training, which stops a flipped exponent from spreading."
                    )
                )
            ],
            settings={
                "images": len(images),
                "trials per rate": subject.profile.fault_trials,
                "rates": list(self.rates),
                "format": sorted({str(p.dtype).removeprefix("torch.") for p in subject.model.parameters()}),
                "faults": "every stored bit of parameters, independently; buffers are spared",
            },
            limitations=["Faults in activations, in code, and in a deployed number format are not simulated."],
        )

    def _trials(self, subject: Subject, images: Images, rate: float) -> Trials:
        """For each trial: how many bits flipped, the accuracy, and whether a logit was not finite."""

        def compute() -> dict[str, Tensor]:
            rows = []
            for trial in range(subject.profile.fault_trials):
                with flip_bits(subject.model, rate, rng=subject.run.rng("bit-flips", rate, trial)) as flips:
                    rows.append((float(flips), *_score(subject, subject.model, images)))
            return {"trials": torch.tensor(rows, dtype=torch.float64)}

        settings = {"rate": rate, "trials": subject.profile.fault_trials, "images": len(images)}
        flips, accuracy, broken = subject.store.tensors("bit-flips", settings, compute)["trials"].numpy().T
        return {"flips": flips, "accuracy": accuracy, "broken": broken}

    def _worst_single(self, subject: Subject) -> tuple[float, float, str, int]:
        """Accuracy without faults and with the worst flip, which flip that is, and how many were tried."""
        images = subject.first(subject.profile.sanity_images)
        count = subject.profile.fault_bits
        found = worst_flip(
            subject.model,
            lambda model: _score(subject, model, images)[0],
            count=count,
            rng=subject.run.rng("bit-flips", "single"),
        )
        where = f"bit {found.bit.bit} of weight {found.bit.index} in {found.bit.parameter}"
        clean = float(subject.predictions("test").correct[: len(images)].mean())
        return clean, found.value, where, len(found.values)


def _score(subject: Subject, model: nn.Module, images: Images) -> tuple[float, float]:
    """Accuracy, an image without finite logits counting as wrong, and 1.0 if there is such an image."""
    logits = predict(model, images, run=subject.run)
    finite = torch.isfinite(logits).all(1)
    right = (logits.argmax(1) == images.y) & finite
    return float(right.double().mean()), float(not finite.all())


def _metrics(subject: Subject, rate: float, found: Trials, clean: float) -> list[Metric]:
    drops, n = clean - found["accuracy"], len(found["accuracy"])
    rng = subject.run.numpy_rng("bit-flips", rate, "interval")
    low, high = stats.mean_interval(drops, rng=rng, resamples=subject.profile.resamples)
    name = _name(rate)
    return [
        Metric(
            name=f"drop-at-{name}",
            value=float(drops.mean()),
            low=low,
            high=high,
            n=n,
            unit="points",
            better="lower",
            title=f"Mean accuracy lost at a flip rate of {name}",
        ),
        Metric(
            name=f"non-finite-at-{name}",
            value=float(found["broken"].mean()),
            n=n,
            unit="rate",
            better="lower",
            title=f"Trials with NaN or infinite logits at a flip rate of {name}",
        ),
    ]


def _name(rate: float) -> str:
    return f"{rate:.0e}".replace("e-0", "e-")


def _chart(trials: dict[float, Trials], clean: float) -> Chart:
    return Chart(
        kind="line",
        title="Accuracy by flip rate",
        x_label="flips per bit",
        y_label="accuracy",
        series=[
            Series(
                name="mean, from worst to best trial",
                x=list(trials),
                y=[float(t["accuracy"].mean()) for t in trials.values()],
                low=[float(t["accuracy"].min()) for t in trials.values()],
                high=[float(t["accuracy"].max()) for t in trials.values()],
            )
        ],
        log_x=True,
        y_range=(0, 1),
        level=clean,
        level_label="no faults",
    )


def _table(trials: dict[float, Trials], clean: float) -> Table:
    rows: list[list[str | float | int | None]] = [
        [
            _name(rate),
            float(t["flips"].mean()),
            float(t["accuracy"].mean()),
            float(t["accuracy"].min()),
            clean - float(t["accuracy"].mean()),
            float(t["broken"].mean()),
        ]
        for rate, t in trials.items()
    ]
    return Table(
        title="Faults",
        columns=["flips per bit", "bits flipped, mean", "accuracy, mean", "accuracy, worst", "lost", "trials with NaN"],
        rows=rows,
        percent=["accuracy, mean", "accuracy, worst", "lost", "trials with NaN"],
    )
