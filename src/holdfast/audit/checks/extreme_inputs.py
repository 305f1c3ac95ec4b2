"""What the model does with inputs at and beyond the edge: black and white images, noise, NaN, values out of range."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Metric, Table
from holdfast.audit.subject import Subject
from holdfast.data import to_float
from holdfast.models import Unanswered

__all__ = ["ExtremeInputs"]


@dataclass(frozen=True)
class _Response:
    """One input's fate: the model raised an error, or gave logits."""

    logits: Tensor | None
    error: str = ""

    @property
    def finite(self) -> bool:
        return self.logits is not None and bool(torch.isfinite(self.logits).all())


@dataclass(frozen=True, kw_only=True)
class ExtremeInputs(Check):
    """Legal but extreme images must give finite logits; NaN must not be answered as if nothing were wrong."""

    id = "extreme-inputs"
    section = "sanity"
    title = "Extreme inputs"
    question = "Does it bear extreme images, and refuse what is no image?"

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        sample = to_float(subject.test.x[:1])
        legal = {name: _respond(subject, x) for name, x in _legal(sample, subject).items()}
        broken = {name: _respond(subject, x) for name, x in _broken(sample).items()}
        beyond = {name: _respond(subject, x) for name, x in _beyond(sample).items()}
        clean = subject.predictions("test")
        failing = sum(not r.finite for r in legal.values()) + int((~clean.finite).sum())
        silent = sum(r.finite for r in broken.values())
        rows = [
            _row(kind, name, response, subject)
            for kind, group in (("legal", legal), ("not a number", broken), ("out of range", beyond))
            for name, response in group.items()
        ]
        return Answer(
            metrics=[
                Metric(
                    name="non-finite-valid",
                    value=failing,
                    n=len(legal) + len(clean),
                    unit="count",
                    better="lower",
                    title="Legal images without finite logits, test images included",
                ),
                Metric(
                    name="silent-nan",
                    value=silent,
                    n=len(broken),
                    unit="count",
                    better="lower",
                    title="Inputs with NaN or infinite pixels that are answered as if nothing were wrong",
                ),
                Metric(
                    name="non-finite-out-of-range",
                    value=sum(not r.finite for r in beyond.values()),
                    n=len(beyond),
                    unit="count",
                    title="Inputs out of [0, 1] that are refused or give no finite logits",
                ),
            ],
            figures=[
                Table(
                    title="Responses",
                    columns=["kind", "input", "response", "prediction", "confidence"],
                    rows=rows,
                    percent=["confidence"],
                )
            ],
            remedies=[
                Remedy(
                    Action(
                        text="Find the operation that overflows or divides by zero; constant images are a usual cause."
                    ),
                    when="non-finite-valid",
                ),
                Remedy(Action(text="Check inputs with torch.isfinite before the model answers."), when="silent-nan"),
            ],
            settings={"inputs": [*legal, *broken, *beyond]},
        )


def _legal(sample: Tensor, subject: Subject) -> dict[str, Tensor]:
    noise = torch.rand(sample.shape, generator=subject.run.rng("extreme-inputs"))
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in sample.shape[2:]), indexing="ij")
    spot = torch.zeros_like(sample)
    spot[..., sample.shape[2] // 2, sample.shape[3] // 2] = 1
    return {
        "black": torch.zeros_like(sample),
        "white": torch.ones_like(sample),
        "grey": torch.full_like(sample, 0.5),
        "checkerboard": ((rows + columns) % 2).float().expand_as(sample).clone(),
        "one white pixel": spot,
        "uniform noise": noise,
        "black and white noise": noise.round(),
        "negative": 1 - sample,
    }


def _broken(sample: Tensor) -> dict[str, Tensor]:
    inputs = {"all NaN": torch.full_like(sample, torch.nan)}
    for name, value in (("one NaN pixel", torch.nan), ("one infinite pixel", torch.inf)):
        inputs[name] = sample.clone()
        inputs[name][..., sample.shape[2] // 2, sample.shape[3] // 2] = value
    return inputs


def _beyond(sample: Tensor) -> dict[str, Tensor]:
    return {"in [0, 255]": 255 * sample, "in [-1, 1]": 2 * sample - 1, "in [0, 1e6]": 1e6 * sample}


def _respond(subject: Subject, x: Tensor) -> _Response:
    try:
        return _Response(subject.respond(x))
    except Unanswered:  # it was not even asked
        raise
    except Exception as error:  # a stranger's model may refuse an input with whatever it likes; that is an answer here
        return _Response(None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:80]}")


def _row(kind: str, name: str, response: _Response, subject: Subject) -> list[str | float | int | None]:
    if response.logits is None:
        return [kind, name, f"refused ({response.error})", None, None]
    if not response.finite:
        return [kind, name, "NaN or infinite logits", None, None]
    probabilities = response.logits[0] if subject.gives_probabilities else response.logits[0].softmax(0)
    return [kind, name, "answered", subject.data.classes[int(probabilities.argmax())], float(probabilities.max())]
