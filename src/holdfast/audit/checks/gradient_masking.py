"""Signs that attacks fail because gradients are masked, not because the model resists."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Metric, Table
from holdfast.audit.subject import Subject

__all__ = ["GradientMasking"]


@dataclass(frozen=True, kw_only=True)
class GradientMasking(Check):
    """Tests of the gradients and of attacks against each other, at the radius of the threat."""

    id = "gradient-masking"
    section = "sanity"
    title = "Masked gradients"
    question = "Do attacks see what they need to see?"
    needs = ("gradients",)

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        signs, profile = subject.masking, subject.profile
        failed = [sign for sign in signs if not sign.ok and sign.severity == "fail"]
        warned = [sign for sign in signs if not sign.ok and sign.severity == "warn"]
        images = len(subject.first(profile.masking_images))
        return Answer(
            metrics=[
                Metric(
                    name="failed-tests",
                    value=len(failed),
                    n=len(signs),
                    unit="count",
                    better="lower",
                    title=f"Signs of masked gradients{_listed([s.name for s in failed])}",
                ),
                Metric(
                    name="warnings",
                    value=len(warned),
                    n=len(signs),
                    unit="count",
                    better="lower",
                    title=f"Signs that an attack was not at its strongest{_listed([s.name for s in warned])}",
                ),
                *(
                    Metric(
                        name=sign.name, value=sign.value, n=images, better="lower", title=sign.name.replace("-", " ")
                    )
                    for sign in signs
                ),
            ],
            figures=[
                Table(
                    title="Tests",
                    columns=["test", "value", "limit", "result", "meaning", "what to try"],
                    rows=[
                        [
                            sign.name.replace("-", " "),
                            sign.value,
                            sign.limit,
                            sign.result,
                            sign.explanation,
                            sign.suggests,
                        ]
                        for sign in signs
                    ],
                )
            ],
            remedies=[
                Remedy(
                    Action(
                        text="Do not claim robustness from gradient attacks on this model. Attack it without "
                        "gradients, and through a differentiable stand-in for the part that masks them.",
                        method="square",
                        command="holdfast attack 'square(queries=5000)' --model MODEL --data DATA",
                    ),
                    when="failed-tests",
                ),
                *(Remedy(Action(text=f"{sign.name}: {sign.suggests}"), when="failed-tests") for sign in failed),
                *(Remedy(Action(text=f"{sign.name}: {sign.suggests}"), when="warnings") for sign in warned),
            ],
            settings={
                "images": images,
                "eps": subject.policy.threat.eps,
                "steps": profile.masking_steps,
                "Square queries": profile.masking_queries,
            },
            limitations=["Passing these tests is no proof of robustness; failing one is strong evidence against it."],
        )


def _listed(names: list[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
