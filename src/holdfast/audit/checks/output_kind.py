"""Whether the model gives logits, as everything that reads its outputs supposes."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Metric
from holdfast.audit.subject import Subject

__all__ = ["OutputKind"]


@dataclass(frozen=True, kw_only=True)
class OutputKind(Check):
    """Are the outputs logits, or did a softmax creep in?"""

    id = "output-kind"
    section = "sanity"
    title = "Kind of output"
    question = "Does it give logits?"

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        outputs = subject.features("test").logits
        return Answer(
            metrics=[
                Metric(
                    name="probabilities",
                    value=float(subject.gives_probabilities),
                    n=len(outputs),
                    unit="count",
                    better="lower",
                    title="Outputs that are probabilities (1) rather than logits (0)",
                ),
                Metric(name="largest-output", value=_finite(outputs.max()), n=len(outputs), title="Largest output"),
                Metric(name="smallest-output", value=_finite(outputs.min()), n=len(outputs), title="Smallest output"),
            ],
            remedies=[
                Remedy(
                    Action(
                        text="Return what goes into the softmax, not what comes out of it. This audit takes "
                        "logarithms, but detectors and attacks lose what the softmax has rounded away."
                    ),
                    when="probabilities",
                )
            ],
            settings={"images": len(outputs)},
        )


def _finite(value: object) -> float | None:
    number = float(value)  # type: ignore[arg-type]
    return number if abs(number) < float("inf") else None
